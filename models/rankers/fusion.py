"""Fusion features: what retrieval, the item and the user's recent past say about each candidate.

The same code builds the inputs of training and of serving. Most columns describe one candidate alone; those
named `*_z` and `*_rank` (and `merged_*`) are **relative to the list given**: the same candidate in another list
gets other values there. So a caller that splits one list over several calls must compute the features over the
whole list first. Knows nothing of networks. Called by the compressed ranker and its training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.candidates import COLUMN_OF, SCORED_SOURCES, Candidates, Source
from models.catalog import ItemCatalog
from models.events import EventType
from models.media.layout import Layout
from models.rankers import returning
from models.rankers.columns import number_table, popularity_table, standardised
from models.rankers.history import History, recent_history
from models.rankers.statistics import ItemStatistics
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]

RANKED_SOURCES = (Source.semantic, Source.collaborative, Source.sequential, Source.neighbours)
_SOURCES = tuple(s for s in SCORED_SOURCES if s not in (Source.cluster, Source.declared))
"""The sources that are features: what stands in for history tells rankers nothing about users who have one."""
FEATURE_NAMES: tuple[str, ...] = (
    "merged_z",
    "merged_rank",
    *(f"{s.name}_z" for s in _SOURCES),
    *(f"{s.name}_rank" for s in RANKED_SOURCES),
    "sources_found",
    "text_max",
    "text_mean",
    "text_last",
    "text_intent",
    "label_affinity",
    "label_liking",
    "label_last",
    "number_affinity",
    "number_last",
    "popularity_affinity",
    "popularity_last",
    "log_popularity",
    "log_recent",
    "item_age",
    *returning.NAMES,
)
"""Names of the columns, in order; a stored ranker names the ones it was trained on."""

_CLIP = 8.0
_SOURCE_BITS = np.array([int(s) for s in _SOURCES], np.uint16)
_COLUMNS = [COLUMN_OF[s] for s in _SOURCES]
_DECAY = 0.9
_DAY_MS = 86_400_000.0


class FusionFeatures:
    """Builds the feature matrix of one list. Immutable after construction and safe between threads."""

    def __init__(
        self, catalog: ItemCatalog, embeddings: Floats, statistics: ItemStatistics, *, layout: Layout | None = None
    ) -> None:
        """`embeddings` is float32[items, dim] of unit vectors (may be mapped); all three describe the same rows.

        `layout` says where pictures and sounds lie in them; texts alone are compared here. None for texts alone.
        """
        counted = len(statistics.popularity)
        if len(embeddings) != len(catalog) or counted != len(catalog):
            raise ValueError(
                f"catalog, embeddings and statistics differ in items: "
                f"{len(catalog)}, {len(embeddings)}, {counted}; build them from the same catalog"
            )
        self._catalog = catalog
        self._embeddings, self._layout = embeddings, layout
        self._labels = _LabelTable(catalog)
        self._numbers = number_table(catalog, catalog.number_names)
        self._static = popularity_table(statistics)
        self._first_ms = statistics.first_ms.astype(np.float64)

    def build(self, query: RetrievalQuery, candidates: Candidates, *, history: History | None = None) -> Floats:
        """Return float32[len(candidates), len(FEATURE_NAMES)], finite and within ±8 whatever the input.

        `history` saves reading it again when the caller has it already.
        """
        history = recent_history(query, self._catalog) if history is None else history
        weights = (_DECAY ** np.arange(len(history) - 1, -1, -1)).astype(np.float32)
        with np.errstate(all="ignore"):  # overflow in a poisoned score or vector is clipped below
            columns = [
                *_retrieval_columns(candidates),
                *self._text_columns(query, candidates, history, weights),
                *self._labels.columns(candidates.rows, history, weights),
                *self._number_columns(candidates.rows, history, weights),
                *self._popularity_columns(candidates.rows, history),
                *self._static[candidates.rows].T,
                self._age_column(query, candidates.rows),
                *returning.own_columns(query, self._catalog, candidates.rows),
            ]
            features = np.stack(columns, axis=1).astype(np.float32)
        return np.clip(np.nan_to_num(features, nan=0.0, posinf=_CLIP, neginf=-_CLIP), -_CLIP, _CLIP)

    def _text_columns(
        self, query: RetrievalQuery, candidates: Candidates, history: History, weights: Floats
    ) -> list[Floats]:
        vectors = self._texts(candidates.rows)
        zeros = np.zeros(len(candidates), np.float32)
        intent = zeros if query.intent is None else vectors @ query.intent
        if len(history) == 0:
            return [zeros, zeros, zeros, intent]
        similar = vectors @ self._texts(history.rows).T
        return [similar.max(axis=1), similar @ weights / weights.sum(), similar[:, -1], intent]

    def _texts(self, rows: npt.NDArray[np.int32]) -> Floats:
        """Return float32[rows, text]: what queries, which are texts, can be compared with too."""
        vectors = self._embeddings[rows]
        return vectors if self._layout is None else self._layout.texts(vectors)

    def _number_columns(self, rows: npt.NDArray[np.int32], history: History, weights: Floats) -> list[Floats]:
        zeros = np.zeros(len(rows), np.float32)
        if self._numbers.shape[1] == 0 or len(history) == 0:
            return [zeros, zeros]
        past, own = self._numbers[history.rows], self._numbers[rows]
        present = ~np.isnan(past)
        total = (present * weights[:, None]).sum(axis=0)
        centre = (np.where(present, past, 0.0) * weights[:, None]).sum(axis=0) / np.where(total > 0, total, np.nan)
        return [_closeness(own, centre), _closeness(own, past[-1])]

    def _popularity_columns(self, rows: npt.NDArray[np.int32], history: History) -> list[Floats]:
        """How near a candidate's popularity is to what the user takes, over the recent past and of late."""
        if len(history) == 0:
            return [np.zeros(len(rows), np.float32)] * 2
        own, past = self._static[rows, 0], self._static[history.rows, 0]
        back = np.arange(len(history) - 1, -1, -1)
        return [-np.abs(own - np.average(past, weights=decay**back)) for decay in (_DECAY, 0.5)]

    def _age_column(self, query: RetrievalQuery, rows: npt.NDArray[np.int32]) -> Floats:
        days = (query.now_ms - self._first_ms[rows]) / _DAY_MS
        age: Floats = (np.log1p(np.maximum(np.nan_to_num(days), 0.0)) / 4.0).astype(np.float32)
        return age


def _retrieval_columns(candidates: Candidates) -> list[Floats]:
    joined = np.concatenate([candidates.scores[:, None], candidates.source_scores[:, _COLUMNS]], axis=1)
    scores = np.nan_to_num(joined, nan=0.0, posinf=0.0, neginf=0.0)
    found = ((candidates.sources[:, None] & _SOURCE_BITS) != 0).sum(axis=1) / 4.0
    merged, *sources = standardised(scores).T
    ranks = [_rank(scores[:, 1 + _SOURCES.index(s)]) for s in RANKED_SOURCES]
    return [merged, _rank(scores[:, 0]), *sources, *ranks, found]


def _rank(values: Floats) -> Floats:
    """Return -log(1 + number of larger values) / 2: 0 for the best; equal values share a rank."""
    larger = len(values) - np.searchsorted(np.sort(values), values, side="right")
    rank: Floats = (-np.log1p(larger) / 2.0).astype(np.float32)
    return rank


def _closeness(own: Floats, centre: npt.NDArray[np.floating]) -> Floats:
    """Return minus the mean distance over the attributes both sides have; 0 where there is none."""
    distance = -np.abs(own - centre)
    present = ~np.isnan(distance)
    mean: Floats = (np.where(present, distance, 0.0).sum(axis=1) / np.maximum(present.sum(axis=1), 1)).astype(
        np.float32
    )
    return mean


class _LabelTable:
    """All closed-set attributes of all items as one CSR over one joint vocabulary."""

    def __init__(self, catalog: ItemCatalog) -> None:
        columns = [c for n in catalog.trait_names if (c := catalog.label_column(n)) is not None]
        owners, codes, base = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
        for column in columns:
            owners.append(np.repeat(np.arange(len(catalog)), np.diff(column.offsets)))
            codes.append(column.codes.astype(np.int64) + base)
            base += len(column.vocabulary)
        owner, code = np.concatenate(owners), np.concatenate(codes)
        order = np.argsort(owner, kind="stable")
        self._codes = code[order]
        self._lengths = np.bincount(owner, minlength=len(catalog))
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)])[: len(catalog)]
        self._width = base
        share = np.bincount(self._codes, minlength=base) / max(len(catalog), 1)
        self._share = share.astype(np.float32)

    def columns(self, rows: npt.NDArray[np.int32], history: History, weights: Floats) -> list[Floats]:
        zeros = np.zeros(len(rows), np.float32)
        if self._width == 0 or len(history) == 0:
            return [zeros, zeros, zeros]
        past_owner, past_codes = self._flat(history.rows)
        own_owner, own_codes = self._flat(rows)
        liking = weights * _liking(history)
        profiles: Sequence[Floats] = (weights, liking, (np.arange(len(history)) == len(history) - 1) * np.float32(1))
        out = []
        for at, weight in enumerate(profiles):
            profile = np.bincount(past_codes, weight[past_owner], minlength=self._width) / max(np.abs(weight).sum(), 1)
            if at == 0:
                profile = profile - self._share  # how much more than the catalog does this user take of it
            total = np.bincount(own_owner, profile[own_codes], minlength=len(rows))
            out.append((total / np.sqrt(np.maximum(self._lengths[rows], 1))).astype(np.float32))
        return out

    def _flat(self, rows: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        lengths = self._lengths[rows]
        owner = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return owner, self._codes[np.repeat(self._starts[rows], lengths) + within]


def _liking(history: History) -> Floats:
    """Return per event how much it speaks for (1) or against (-1) its item; ratings relative to the user's mean."""
    out = np.ones(len(history), np.float32)
    rated = history.types == EventType.rating
    if rated.any():
        values = history.values[rated]
        out[rated] = np.clip(values - values.mean(), -2.0, 2.0) / 2.0
    out[(history.types == EventType.dislike) | (history.types == EventType.hide)] = -1.0
    return out
