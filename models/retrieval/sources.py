"""The retrieval sources: each turns a user's state into an opinion about the items, or has none.

Called by the retrieval engine. A source knows nothing of filters, weights or the other sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import Behaviour
from models.behaviour.statistics import Statistics
from models.candidates import Source
from models.index import VectorIndex
from models.media.layout import Layout
from models.opinion import (
    DenseOpinion,
    LinearOpinion,
    Mask,
    Opinion,
    PositiveOpinion,
    RankedOpinion,
    Rows,
    Scores,
    SparseOpinion,
)
from models.retrieval.filters import AttributeMasks
from models.retrieval.query import AttributeFilter
from models.retrieval.settings import RetrievalSettings
from models.retrieval.state import UserState

DENSE_BELOW = 20_000
"""Up to this many items, scoring all of them is cheaper than asking an index."""
_DAY_MS = 86_400_000


class RetrievalSource(Protocol):
    """One way of finding items."""

    source: Source

    def opinion(self, state: UserState) -> Opinion | None:
        """Return what this source thinks of the items for `state`, None when it has nothing to go by.

        Thread-safe, no effect, raises nothing.
        """
        ...


class VectorSpace:
    """Item vectors with their index: opinions of any query vector, shared by the content sources."""

    def __init__(
        self,
        vectors: Scores,
        index: VectorIndex,
        *,
        like: VectorSpace | None = None,
        layout: Layout | None = None,
    ) -> None:
        """`vectors` float32[items, dim] of unit length, may be mapped; their spread is that of `like` where given.

        `layout` says where pictures and sounds lie in them; None for texts alone.
        """
        self.vectors, self._index, self._layout = vectors, index, layout
        self._covariance: npt.NDArray[Any] = _covariance(vectors) if like is None else like._covariance

    def asked(self, rows: Rows) -> Scores:
        """Return the vectors of `rows` as one searches with them, float32[rows, dim]."""
        vectors = self.vectors[rows]
        return vectors if self._layout is None else self._layout.asked(vectors)

    @property
    def text_dimension(self) -> int:
        """Length of the vectors that texts are embedded into."""
        return int(self.vectors.shape[1]) if self._layout is None else self._layout.text

    @property
    def text_scale(self) -> np.float32:
        """Length of what one searches with for a text of unit length."""
        return np.float32(1.0 if self._layout is None else 1.0 / np.sqrt(self._layout.text_weight))

    def of_text(self, vector: Scores) -> Scores:
        """Return what to search with for the vector of a text, float32[text_dimension]."""
        return vector if self._layout is None else self._layout.query(vector)

    def towards(self, query: Scores) -> Opinion:
        """Return the opinion "near `query`"."""
        if len(self.vectors) <= DENSE_BELOW:
            return DenseOpinion(np.asarray(self.vectors @ query, np.float32))
        spread = float(np.sqrt(max(0.0, float(query @ self._covariance @ query))))
        return LinearOpinion(self.vectors, query, spread=spread, search=self._search)

    def _search(self, query: Scores, n: int, allowed: Mask) -> Rows:
        return self._index.search(query, n, allowed=allowed)[0]


class SemanticSource:
    """Near in content to what the user took lately, to what they search for, and to what they said they like."""

    source = Source.semantic

    def __init__(self, space: VectorSpace, settings: RetrievalSettings) -> None:
        self._space, self._settings = space, settings

    def vector(self, state: UserState) -> Scores | None:
        """Return the user's unit vector, None without history, intent and declaration."""
        parts = []
        recent = state.rows[-self._settings.semantic_events :]
        if len(recent):
            taken = decay(len(recent), self._settings.semantic_decay) @ self._space.asked(recent)
            # As long as the text vectors beside it, whose weights would mean something else otherwise.
            parts.append(self._space.text_scale * _unit(taken))
        if state.intent is not None:
            parts.append(np.float32(self._settings.intent_weight) * state.intent)
        if state.declared is not None:
            parts.append(np.float32(self._settings.declared_weight) * state.declared)
        return _unit(np.sum(parts, axis=0)) if parts else None

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        vector = self.vector(state)
        return None if vector is None else self._space.towards(vector)


class SimilarSource:
    """Near in content to the seed items alone."""

    source = Source.similar

    def __init__(self, space: VectorSpace) -> None:
        self._space = space

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        if not len(state.seeds):
            return None
        return self._space.towards(_unit(self._space.asked(state.seeds).sum(axis=0)))


class CollaborativeSource:
    """What people who took these items also took."""

    source = Source.collaborative

    def __init__(self, behaviour: Behaviour, settings: RetrievalSettings) -> None:
        self._model, self._discovery, self._settings = behaviour.collaborative, behaviour.discovery, settings

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`; an item counts once, by its last event."""
        if not len(state):
            return None
        newest = slice(None, -self._settings.collaborative_events - 1, -1)
        rows, last = np.unique(state.rows[newest], return_index=True)
        halvings = np.zeros(len(rows))
        if self._settings.collaborative_half_life_events is not None:
            halvings += last / self._settings.collaborative_half_life_events
        if self._settings.collaborative_half_life_days is not None:
            halvings += state.ages_ms[newest][last] / (self._settings.collaborative_half_life_days * _DAY_MS)
        model = self._discovery if state.unseen else self._model
        return model.fold_in(rows, np.exp2(-halvings).astype(np.float32))


class SequentialSource:
    """What followed the user's last items in other people's histories; the last item counts most."""

    source = Source.sequential

    def __init__(self, behaviour: Behaviour, settings: RetrievalSettings) -> None:
        self._transitions, self._settings = behaviour.transitions, settings

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        recent = state.rows[-self._settings.sequential_events :]
        if not len(recent):
            return None
        columns, scores = self._transitions.followers(recent, decay(len(recent), self._settings.sequential_decay))
        return _damped(columns, scores, len(self._transitions))


class NeighboursSource:
    """What people who recently took the same items took next to them."""

    source = Source.neighbours

    def __init__(self, behaviour: Behaviour, settings: RetrievalSettings) -> None:
        self._sequences, self._items, self._settings = behaviour.sequences, len(behaviour.transitions), settings

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        settings = self._settings
        recent = state.rows[-settings.sequential_events :]
        if not len(recent):
            return None
        rows, scores = self._sequences.neighbours(
            recent,
            decay(len(recent), settings.sequential_decay),
            power=settings.neighbour_power,
            window=settings.neighbour_window,
            step=settings.neighbour_step,
            backward=settings.neighbour_backward,
            per_item=settings.neighbour_per_item,
            matches=settings.neighbour_matches,
        )
        # The user's own stored sequence is the likest of all and only repeats what they took.
        foreign = ~np.isin(rows, state.rows)
        return _damped(rows[foreign], scores[foreign], self._items)


class RepeatSource:
    """What this user takes again: their own items, recent and frequent ones first, those in demand before others."""

    source = Source.repeat

    def __init__(self, statistics: Statistics, settings: RetrievalSettings) -> None:
        self._half_life_days = settings.repeat_half_life_days
        self._demand = np.power(np.asarray(statistics.recent, np.float32), np.float32(settings.repeat_trend_power))

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        if not len(state):
            return None
        weights = np.exp2(-state.ages_ms / (self._half_life_days * _DAY_MS)).astype(np.float32)
        return SparseOpinion(state.rows, weights * self._demand[state.rows], len(self._demand))


class FreshSource:
    """Items few people know yet, by content."""

    source = Source.fresh

    def __init__(
        self,
        semantic: Callable[[UserState], Scores | None],
        space: VectorSpace,
        statistics: Statistics,
        settings: RetrievalSettings,
    ) -> None:
        """`semantic` gives the user's vector, as the semantic source sees them."""
        self._vector, self._space = semantic, space
        cold = np.flatnonzero(np.asarray(statistics.users) <= settings.fresh_below_users)
        newest = np.argsort(-np.asarray(statistics.first_ms)[cold], kind="stable")
        self._rows = np.sort(cold[newest[: settings.fresh_items]]).astype(np.int32)

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        vector = self._vector(state)
        if vector is None or not len(self._rows):
            return None
        scores = np.maximum(self._space.vectors[self._rows] @ vector, 0.0)
        return SparseOpinion(self._rows, scores, len(self._space.vectors))


class ClusterSource:
    """What the group of users nearest in content takes: a prior for who has next to no history."""

    source = Source.cluster

    def __init__(
        self, semantic: Callable[[UserState], Scores | None], behaviour: Behaviour, settings: RetrievalSettings
    ) -> None:
        """`semantic` gives the user's vector, as the semantic source sees them."""
        self._vector, self._clusters = semantic, behaviour.clusters
        self._items, self._short = len(behaviour.transitions), settings.short_history

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        if not len(self._clusters) or len(state) >= self._short:
            return None
        vector = self._vector(state)
        if vector is None:
            return None
        rows, shares = self._clusters.items(self._clusters.nearest(vector))
        return SparseOpinion(rows, shares, self._items)


class DeclaredSource:
    """Carries labels that the user declared or the request names; a label counts by how much it tells (log N/n)."""

    source = Source.declared

    def __init__(self, masks: AttributeMasks, items: int) -> None:
        """`masks` says which of the `items` carry a label."""
        self._masks, self._items = masks, items

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`; labels that no item or every item carries say nothing."""
        scores = np.zeros(self._items, np.float32)
        for name, value in state.labels:
            mask = self._masks.of_one(name, AttributeFilter((value,)))
            carriers = int(np.count_nonzero(mask))
            if carriers:
                scores += mask * np.float32(np.log(self._items / carriers))
        return PositiveOpinion(scores) if scores.any() else None


class CountSource:
    """The same for everybody: popular over all time, or of late."""

    def __init__(self, source: Source, counts: Scores, *, power: float | None = None) -> None:
        """`counts` float32[items] to the `power`; None takes logarithms: one blockbuster does not drown the rest."""
        self.source = source
        counts = np.asarray(counts, np.float32)
        self._opinion = RankedOpinion(np.log1p(counts) if power is None else np.power(counts, np.float32(power)))

    def opinion(self, state: UserState) -> Opinion:
        """See `RetrievalSource.opinion`."""
        return self._opinion


def _damped(rows: Rows, scores: Scores, items: int) -> Opinion:
    """Add up scores per item and take the root, so that one strong link does not drown several weaker ones."""
    if items > DENSE_BELOW:
        return SparseOpinion(rows, scores, items, damped=True)
    return DenseOpinion(np.sqrt(np.bincount(rows, weights=scores, minlength=items)).astype(np.float32))


def _covariance(vectors: Scores) -> npt.NDArray[Any]:
    sample = np.asarray(vectors[:: max(1, len(vectors) // 20_000)])
    return np.cov(sample, rowvar=False) if len(sample) > 1 else np.zeros((vectors.shape[1],) * 2)


def decay(length: int, rate: float) -> Scores:
    """Return weights for `length` events, oldest first: 1 for the last, times `rate` for each one before."""
    return (rate ** np.arange(length - 1, -1, -1)).astype(np.float32)


def _unit(vector: Scores) -> Scores:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length > 0 else vector, np.float32)
