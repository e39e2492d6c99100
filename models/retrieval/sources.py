"""The retrieval sources: each turns a user's state into an opinion about the items, or has none.

Called by the retrieval engine. A source knows nothing of filters, weights or the other sources.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from models.behaviour.behaviour import Behaviour
from models.behaviour.statistics import Statistics
from models.candidates import Source
from models.index import VectorIndex
from models.opinion import DenseOpinion, LinearOpinion, Mask, Opinion, RankedOpinion, Rows, Scores, SparseOpinion
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

    def __init__(self, vectors: Scores, index: VectorIndex) -> None:
        """`vectors` float32[items, dim] of unit length, may be mapped."""
        self.vectors, self._index = vectors, index
        sample = np.asarray(vectors[:: max(1, len(vectors) // 20_000)])
        self._covariance = np.cov(sample, rowvar=False) if len(sample) > 1 else np.zeros((vectors.shape[1],) * 2)

    def towards(self, query: Scores) -> Opinion:
        """Return the opinion "near `query`"."""
        if len(self.vectors) <= DENSE_BELOW:
            return DenseOpinion(np.asarray(self.vectors @ query, np.float32))
        spread = float(np.sqrt(max(0.0, float(query @ self._covariance @ query))))
        return LinearOpinion(self.vectors, query, spread=spread, search=self._search)

    def _search(self, query: Scores, n: int, allowed: Mask) -> Rows:
        return self._index.search(query, n, allowed=allowed)[0]


class SemanticSource:
    """Near in content to what the user took lately, and to what they search for."""

    source = Source.semantic

    def __init__(self, space: VectorSpace, settings: RetrievalSettings) -> None:
        self._space, self._settings = space, settings

    def vector(self, state: UserState) -> Scores | None:
        """Return the user's unit vector, None without history and intent."""
        parts = []
        recent = state.rows[-self._settings.semantic_events :]
        if len(recent):
            taken = decay(len(recent), self._settings.semantic_decay) @ self._space.vectors[recent]
            parts.append(_unit(taken))
        if state.intent is not None:
            parts.append(np.float32(self._settings.intent_weight) * state.intent)
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
        return self._space.towards(_unit(self._space.vectors[state.seeds].sum(axis=0)))


class CollaborativeSource:
    """What people who took these items also took."""

    source = Source.collaborative

    def __init__(self, behaviour: Behaviour, settings: RetrievalSettings) -> None:
        self._model, self._half_life_days = behaviour.collaborative, settings.collaborative_half_life_days

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`; an item counts once, by its last event."""
        if not len(state):
            return None
        rows, last = np.unique(state.rows[::-1], return_index=True)
        weights = np.ones(len(rows), np.float32)
        if self._half_life_days is not None:
            ages = state.ages_ms[::-1][last]
            weights = np.exp2(-ages / (self._half_life_days * _DAY_MS)).astype(np.float32)
        return self._model.fold_in(rows, weights)


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
        items = len(self._transitions)
        if items <= DENSE_BELOW:
            return DenseOpinion(np.bincount(columns, weights=scores, minlength=items).astype(np.float32))
        return SparseOpinion(columns, scores, items)


class RepeatSource:
    """What this user takes again: their own items, recent and frequent ones first."""

    source = Source.repeat

    def __init__(self, items: int, settings: RetrievalSettings) -> None:
        self._items, self._half_life_days = items, settings.repeat_half_life_days

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        if not len(state):
            return None
        weights = np.exp2(-state.ages_ms / (self._half_life_days * _DAY_MS)).astype(np.float32)
        return SparseOpinion(state.rows, weights, self._items)


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


class CountSource:
    """The same for everybody: popular over all time, or of late."""

    def __init__(self, source: Source, counts: Scores) -> None:
        """`counts` float32[items]; compared by logarithm, so that one blockbuster does not drown the rest."""
        self.source = source
        self._opinion = RankedOpinion(np.log1p(np.asarray(counts, np.float32)))

    def opinion(self, state: UserState) -> Opinion:
        """See `RetrievalSource.opinion`."""
        return self._opinion


def decay(length: int, rate: float) -> Scores:
    """Return weights for `length` events, oldest first: 1 for the last, times `rate` for each one before."""
    return (rate ** np.arange(length - 1, -1, -1)).astype(np.float32)


def _unit(vector: Scores) -> Scores:
    length = float(np.linalg.norm(vector))
    return np.asarray(vector / length if length > 0 else vector, np.float32)
