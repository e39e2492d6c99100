"""The retrieval engine: asks every source, merges their opinions, returns the best allowed items.

No returned row ever violates a filter, and a rare filter still fills the list. Synchronous, CPU-bound, thread-
safe and free of effects: the same query gives the same candidates. Called by serving, training and evaluation.
"""

from __future__ import annotations

from bisect import bisect_left
from copy import copy
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import Behaviour
from models.behaviour.statistics import Statistics
from models.candidates import COLUMN_OF, SCORED_SOURCES, Candidates, Source
from models.catalog import ItemCatalog
from models.index import VectorIndex
from models.media.layout import Layout
from models.opinion import Mask, Opinion, Rows, Scores
from models.retrieval.extended import ReleaseOnly
from models.retrieval.filters import AttributeMasks
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights
from models.retrieval.sources import (
    DENSE_BELOW,
    ClusterSource,
    CollaborativeSource,
    CountSource,
    DeclaredSource,
    FreshSource,
    NeighboursSource,
    RepeatSource,
    RetrievalSource,
    SemanticSource,
    SequentialSource,
    SimilarSource,
    VectorSpace,
)
from models.retrieval.state import UserState, state_of


class RetrievalEngine:
    """Retrieves candidates from one release's artifacts."""

    def __init__(
        self,
        catalog: ItemCatalog,
        embeddings: Scores,
        index: VectorIndex,
        behaviour: Behaviour,
        statistics: Statistics,
        settings: RetrievalSettings | None = None,
        *,
        withheld: Mask | None = None,
        grown_from: RetrievalEngine | None = None,
        layout: Layout | None = None,
    ) -> None:
        """All artifacts are of the same catalog. Raises ValueError when their sizes differ.

        `withheld` items (hidden, unavailable, removed) are never returned. With `grown_from`, the engine of the release
        alone, the catalog holds newer items behind those of `behaviour`, and what does not change is taken from there.
        `layout` says where pictures and sounds lie in `embeddings`.
        """
        known = len(behaviour.transitions)
        sizes = {len(catalog), len(embeddings), len(statistics)} | ({known} if grown_from is None else set())
        if len(sizes) > 1:
            raise ValueError(f"catalog, embeddings, behaviour and statistics differ in size: {sorted(sizes)}")
        self.catalog, self.settings = catalog, settings or RetrievalSettings()
        self.index, self._withheld = index, withheld
        self._masks = AttributeMasks(catalog)
        if grown_from is None:
            self._id_order, self._space = _id_order(catalog), VectorSpace(embeddings, index, layout=layout)
        else:
            self._id_order = _grown_order(grown_from._id_order, catalog)
            self._space = VectorSpace(embeddings, index, like=grown_from._space, layout=layout)
        semantic = SemanticSource(self._space, self.settings)
        behavioural: list[RetrievalSource] = [
            CollaborativeSource(behaviour, self.settings),
            SequentialSource(behaviour, self.settings),
            NeighboursSource(behaviour, self.settings),
        ]
        if known < len(catalog):
            behavioural = [ReleaseOnly(source, known) for source in behavioural]
        sources: list[RetrievalSource] = [
            semantic,
            *behavioural,
            RepeatSource(statistics, self.settings),
            FreshSource(semantic.vector, self._space, statistics, self.settings),
            SimilarSource(self._space),
            ClusterSource(semantic.vector, behaviour, self.settings),
            DeclaredSource(self._masks, len(catalog)),
        ]
        self._sources = {s.source: s for s in (*sources, *self._counting(statistics))}

    def _counting(self, statistics: Statistics) -> list[CountSource]:
        return [
            CountSource(Source.trending, statistics.recent, power=self.settings.trending_power),
            CountSource(Source.popular, statistics.popularity),
        ]

    def recount(self, statistics: Statistics) -> None:
        """Let `trending` and `popular` go by newer statistics from the next query on; all else stays the release's.

        Thread-safe. Raises ValueError when they are of another catalog.
        """
        if len(statistics) != len(self.catalog):
            raise ValueError(f"statistics of {len(statistics)} items for a catalog of {len(self.catalog)}")
        # One assignment: a query that runs sees the old sources or the new ones.
        self._sources = {**self._sources, **{s.source: s for s in self._counting(statistics)}}

    def reweighted(self, settings: RetrievalSettings) -> RetrievalEngine:
        """Return this engine under other weights; it shares the sources with this one.

        Raises ValueError where `settings` differ in more than weights: sources were made with the rest.
        """
        if _beside_weights(settings) != _beside_weights(self.settings):
            raise ValueError("the settings differ in more than weights: build an engine with them")
        other = copy(self)
        other.settings = settings
        return other

    def retrieve(self, query: RetrievalQuery) -> Candidates:
        """Return up to `query.n` candidates, best first, ties by item id; empty when nothing is allowed."""
        if query.n <= 0 or not len(self.catalog):
            return Candidates.empty()
        state = self._state(query)
        allowed = self._allowed(query, state)
        if not allowed.any():
            return Candidates.empty()
        weights = weights_for(self.settings, query, state)
        # Every source is asked, since their scores are the ranker's features; those of weight 0 propose nothing. What
        # is asked about items is not ranked.
        asked = [s for s in self._sources if not query.about_seeds or weights.of(s) > 0 or s is Source.popular]
        opinions = {s: o for s in asked if (o := self._ask(s, query, state)) is not None}
        depths = {s: self.settings.depth_of(s, query.n) for s in opinions}
        proposing = (s for s in opinions if weights.of(s) > 0 or s is Source.popular)
        found = {s: self._top(s, opinions[s], depths[s], allowed, query) for s in proposing}
        if len(self.catalog) <= DENSE_BELOW or query.only_items is not None:
            rows = np.flatnonzero(allowed).astype(np.int32)
        else:
            rows = np.unique(np.concatenate(list(found.values())))
        return self._merge(rows, opinions, found, weights, query)

    def _state(self, query: RetrievalQuery) -> UserState:
        """Return the state with the labels that some item carries: others are no reason for other weights."""
        size = self._space.text_dimension
        state = state_of(query, self.catalog, dimension=size, declared_events=self.settings.declared_events)
        if state.declared is not None:
            state = replace(state, declared=self._space.of_text(state.declared))
        carried = tuple(label for label in state.labels if self._masks.knows(*label))
        return state if len(carried) == len(state.labels) else replace(state, labels=carried)

    def _merge(
        self,
        rows: Rows,
        opinions: dict[Source, Opinion],
        found: dict[Source, Rows],
        weights: SourceWeights,
        query: RetrievalQuery,
    ) -> Candidates:
        columns = self._columns(rows, opinions, query)
        total = np.zeros(len(rows), np.float32)
        for source, column in columns.items():
            if (weight := weights.of(source)) > 0:
                total += np.float32(weight) * column
        best = self._best(rows, total, query.n)
        scaled = np.zeros((len(best), len(SCORED_SOURCES)), np.float32)
        for source, column in columns.items():
            scaled[:, COLUMN_OF[source]] = column[best]
        bits = np.zeros(len(self.catalog), np.uint16)
        for source, hits in found.items():
            if weights.of(source) > 0:
                bits[hits] |= np.uint16(source)
        # Popularity without a weight only fills up: it is the source of what nothing else found.
        bits[rows] = np.where(bits[rows] == 0, np.uint16(Source.popular), bits[rows])
        sources = bits[rows[best]]
        if query.only_items is not None:
            sources |= np.uint16(Source.given)
        return Candidates(rows[best], sources, scaled, total[best])

    def _columns(self, rows: Rows, opinions: dict[Source, Opinion], query: RetrievalQuery) -> dict[Source, Scores]:
        """Return each opinion of `rows` at unit variance; those that tell nothing apart are left out."""
        return {s: o.of(rows) / np.float32(o.spread) for s, o in opinions.items() if o.spread > 0}

    def _top(self, source: Source, opinion: Opinion, depth: int, allowed: Mask, query: RetrievalQuery) -> Rows:
        return opinion.top(depth, allowed)

    def _best(self, rows: Rows, total: Scores, n: int) -> npt.NDArray[np.intp]:
        """Positions of the `n` best, ties by item id; exact at the boundary."""
        at = np.arange(len(rows))
        if n < len(rows):
            least = np.partition(total, len(total) - n)[len(total) - n]
            at = np.flatnonzero(total >= least)
        order: npt.NDArray[np.intp] = np.lexsort((self._id_order[rows[at]], -total[at]))[:n]
        return at[order]

    def _ask(self, source: Source, query: RetrievalQuery, state: UserState) -> Opinion | None:
        if source is Source.repeat and query.exclude_seen:
            return None  # it could only name items that may not be returned
        return self._sources[source].opinion(state)

    def _allowed(self, query: RetrievalQuery, state: UserState) -> Mask:
        mask = self._masks.all_of(query.filters)
        if self._withheld is not None:
            mask &= ~self._withheld
        if query.only_items is not None:
            given = np.zeros(len(mask), dtype=bool)
            given[_known(self.catalog.rows(query.only_items))] = True
            mask &= given
        mask[_known(self.catalog.rows(query.exclude_items))] = False
        mask[state.seeds] = False
        mask[state.refused] = False
        if query.exclude_seen and query.personal:
            mask[_known(self.catalog.rows_of_hashes(query.user.seen))] = False
        return mask


def weights_for(settings: RetrievalSettings, query: RetrievalQuery, state: UserState) -> SourceWeights:
    """Return the weights by the question, how much is known of the user and how fresh it is."""
    weights = _weights_for(settings, query, state)
    if not state.labels or state.strength == 1.0:
        return weights
    return weights.model_copy(update={"declared": weights.declared * state.strength})


def _weights_for(settings: RetrievalSettings, query: RetrievalQuery, state: UserState) -> SourceWeights:
    if query.about_seeds:
        return settings.item_weights
    if not len(state):
        if state.intent is not None:
            return settings.search_weights
        return settings.declared_weights if state.labels or state.declared is not None else settings.cold_weights
    if len(state) < settings.short_history:
        return settings.short_weights
    stale = int(state.ages_ms.min()) > settings.stale_after_s * 1000
    if stale and settings.stale_weights is not None:
        return settings.stale_weights
    if query.exclude_seen and settings.unseen_weights is not None:
        return settings.unseen_weights
    return settings.weights


def _beside_weights(settings: RetrievalSettings) -> dict[str, object]:
    return settings.model_dump(exclude={name for name in RetrievalSettings.model_fields if name.endswith("weights")})


def _known(rows: Rows) -> Rows:
    return rows[rows >= 0]


def _id_order(catalog: ItemCatalog) -> npt.NDArray[np.float64]:
    """Return each row's position in the order of item ids."""
    order = np.argsort(np.asarray(catalog.item_ids(np.arange(len(catalog), dtype=np.int32)), dtype=object))
    position = np.empty(len(catalog), np.float64)
    position[order] = np.arange(len(catalog))
    return position


def _grown_order(order: npt.NDArray[np.float64], catalog: ItemCatalog) -> npt.NDArray[np.float64]:
    """Return `order` with the rows that `catalog` has beyond it, each at a fraction between its two neighbours."""
    rows = np.arange(len(order), len(catalog), dtype=np.int32)
    if not len(rows):
        return order
    by_id = np.argsort(order)
    ids = catalog.item_ids(rows)
    added = np.empty(len(rows), np.float64)
    for place, at in enumerate(sorted(range(len(ids)), key=ids.__getitem__), start=1):
        before = bisect_left(by_id, ids[at], key=lambda row: catalog.item_id(int(row)))
        added[at] = before - 1 + place / (len(ids) + 1)
    return np.concatenate([order, added])
