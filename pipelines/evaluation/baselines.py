"""The baselines every claim is measured against, in plain numpy, fitted in the same run.

Deliberately independent of `models.retrieval` and `models.behaviour` fits: a mistake there must not be shared by
the yardstick. Called by `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions, interactions_of
from models.catalog import ItemCatalog
from models.events import EventLog
from models.retrieval.query import RetrievalQuery

Recommend = Callable[[RetrievalQuery, int], Sequence[str]]
Build = Callable[[EventLog], Recommend]
Matrix = npt.NDArray[np.float32]
Given = TypeVar("Given")
Made = TypeVar("Made")
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Past:
    """What a user took, oldest first: catalog rows, and how many days ago."""

    rows: npt.NDArray[np.int32]
    ages_days: npt.NDArray[np.float64]


Score = Callable[[Past], Matrix]
"""From a user's past to a score of every item."""
Fit = Callable[[Interactions], Score]

BEST_BASELINE = "EASE + sequential"
SHOP_BASELINES = (
    "popularity",
    "recent popularity",
    "item-kNN",
    "EASE",
    "decayed EASE",
    "decayed EASE + recent",
    "decayed EASE + own",
)
"""Names of `shop_baselines`, in order."""


def baselines(catalog: ItemCatalog) -> dict[str, Build]:
    """Return the baselines by name, each fitted from the training log it is given."""
    return _builders(
        catalog,
        {
            "popularity": _popularity,
            "item-kNN": _item_knn,
            "EASE": _ease,
            "sequential": _sequential,
            BEST_BASELINE: _sum(_ease, _sequential),
        },
    )


def shop_baselines(catalog: ItemCatalog) -> dict[str, Build]:
    """Return the baselines for catalogues where items are bought again and demand changes from week to week."""
    decayed = once(lambda data: _ease(data, half_life_days=60.0))
    recent = once(lambda data: _popularity(data, half_life_days=14.0))
    fits = (
        _popularity,
        recent,
        _item_knn,
        _ease,
        decayed,
        _sum(decayed, recent, weights=(1.0, 0.5)),
        _sum(decayed, _own),
    )
    return _builders(catalog, dict(zip(SHOP_BASELINES, fits, strict=True)))


def once(make: Callable[[Given], Made]) -> Callable[[Given], Made]:
    """Return `make` that remembers its last answer, for as long as it is given the very same object."""
    last: list[tuple[Given, Made]] = []

    def made(given: Given) -> Made:
        if not last or last[0][0] is not given:
            last[:] = [(given, make(given))]
        return last[0][1]

    return made


def _builders(catalog: ItemCatalog, fits: Mapping[str, Fit]) -> dict[str, Build]:
    interactions = once(lambda train: interactions_of(train, catalog))
    return {name: _builder(catalog, interactions, fit) for name, fit in fits.items()}


def _builder(catalog: ItemCatalog, interactions: Callable[[EventLog], Interactions], fit: Fit) -> Build:
    def build(train: EventLog) -> Recommend:
        score = fit(interactions(train))

        def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
            rows = catalog.rows(query.user.item_ids)
            ages_days = (query.now_ms - query.user.timestamps_ms) / _DAY_MS
            scores = score(Past(rows[rows >= 0], ages_days[rows >= 0])).copy()
            if query.exclude_seen:
                seen = catalog.rows_of_hashes(query.user.seen)
                scores[seen[seen >= 0]] = -np.inf
            best = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
            return catalog.item_ids(best[np.isfinite(scores[best])])

        return recommend

    return build


def _ages_days(data: Interactions) -> npt.NDArray[np.float64]:
    return (data.timestamps_ms.max(initial=0) - data.timestamps_ms) / _DAY_MS


def _matrix(data: Interactions, *, half_life_days: float | None = None) -> Matrix:
    """Users × items: 1, or halved with the age of the last event."""
    matrix = np.zeros((data.n_users, data.n_items), np.float32)
    weights = np.ones(len(data)) if half_life_days is None else np.exp2(-_ages_days(data) / half_life_days)
    np.maximum.at(matrix, (data.users, data.rows), weights.astype(np.float32))
    return matrix


def _popularity(data: Interactions, *, half_life_days: float | None = None) -> Score:
    weights = None if half_life_days is None else np.exp2(-_ages_days(data) / half_life_days)
    counts = np.bincount(data.rows, weights=weights, minlength=data.n_items).astype(np.float32)
    return lambda past: counts


def _item_knn(data: Interactions) -> Score:
    """Cosine between items, shrunk by 50."""
    matrix = _matrix(data)
    together = matrix.T @ matrix
    norm = np.sqrt(np.diag(together))
    similar = together / (np.outer(norm, norm) + 50.0)
    np.fill_diagonal(similar, 0.0)
    return lambda past: similar[np.unique(past.rows)].sum(axis=0)


def _ease(data: Interactions, *, half_life_days: float | None = None) -> Score:
    """EASE with λ = 500."""
    matrix = _matrix(data, half_life_days=half_life_days)
    gram = (matrix.T @ matrix).astype(np.float64)
    inverse = np.linalg.inv(gram + 500.0 * np.eye(data.n_items))
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return lambda past: weights[np.unique(past.rows)].sum(axis=0)


def _own(data: Interactions) -> Score:
    """The user's own items, halved with every 60 days of age."""
    size = data.n_items
    return lambda past: np.bincount(past.rows, np.exp2(-past.ages_days / 60.0), size).astype(np.float32)


def _sequential(data: Interactions) -> Score:
    """Transitions within 5 steps weighted 1/d, rows shrunk by 20; the last 10 events decayed by 0.8."""
    counts = np.zeros((data.n_items, data.n_items), np.float32)
    for distance in range(1, 6):
        same = data.users[distance:] == data.users[:-distance]
        np.add.at(counts, (data.rows[:-distance][same], data.rows[distance:][same]), 1.0 / distance)
    weights = counts / (counts.sum(axis=1, keepdims=True) + 20.0)

    def score(past: Past) -> Matrix:
        last = past.rows[-10:]
        return np.asarray((0.8 ** np.arange(len(last))[::-1]).astype(np.float32) @ weights[last])

    return score


def _sum(*fits: Fit, weights: Sequence[float] | None = None) -> Fit:
    """Add up scores that are each scaled to unit variance."""

    def fit(data: Interactions) -> Score:
        parts = [one(data) for one in fits]
        factors = [1.0] * len(parts) if weights is None else weights
        return lambda past: np.sum([w * _unit(p(past)) for w, p in zip(factors, parts, strict=True)], axis=0)

    return fit


def _unit(scores: Matrix) -> Matrix:
    spread = float(scores.std())
    return scores / spread if spread > 0 else scores
