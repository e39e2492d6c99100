"""The baselines every claim is measured against, in plain numpy, fitted in the same run.

Deliberately independent of `models.retrieval` and `models.behaviour` fits: a mistake there must not be shared by
the yardstick. Called by `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions, interactions_of
from models.catalog import ItemCatalog
from models.events import EventLog
from models.retrieval.query import RetrievalQuery

Recommend = Callable[[RetrievalQuery, int], Sequence[str]]
Build = Callable[[EventLog], Recommend]
Matrix = npt.NDArray[np.float32]
Score = Callable[[npt.NDArray[np.int32]], Matrix]
"""From a user's rows, oldest first, to a score of every item."""

BEST_BASELINE = "EASE + sequential"


def baselines(catalog: ItemCatalog) -> dict[str, Build]:
    """Return the baselines by name, each fitted from the training log it is given."""
    fits: dict[str, Callable[[Interactions], Score]] = {
        "popularity": _popularity,
        "item-kNN": _item_knn,
        "EASE": _ease,
        "sequential": _sequential,
        BEST_BASELINE: _ease_and_sequential,
    }
    return {name: _builder(catalog, fit) for name, fit in fits.items()}


def _builder(catalog: ItemCatalog, fit: Callable[[Interactions], Score]) -> Build:
    def build(train: EventLog) -> Recommend:
        score = fit(interactions_of(train, catalog))

        def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
            rows = catalog.rows(query.user.item_ids)
            scores = score(rows[rows >= 0]).copy()
            if query.exclude_seen:
                seen = catalog.rows_of_hashes(query.user.seen)
                scores[seen[seen >= 0]] = -np.inf
            best = np.argsort(-scores, kind="stable")[:k].astype(np.int32)
            return catalog.item_ids(best[np.isfinite(scores[best])])

        return recommend

    return build


def _binary(data: Interactions) -> Matrix:
    matrix = np.zeros((data.n_users, data.n_items), np.float32)
    matrix[data.users, data.rows] = 1.0
    return matrix


def _popularity(data: Interactions) -> Score:
    counts = np.bincount(data.rows, minlength=data.n_items).astype(np.float32)
    return lambda rows: counts


def _item_knn(data: Interactions) -> Score:
    """Cosine between items, shrunk by 50."""
    matrix = _binary(data)
    together = matrix.T @ matrix
    norm = np.sqrt(np.diag(together))
    similar = together / (np.outer(norm, norm) + 50.0)
    np.fill_diagonal(similar, 0.0)
    return lambda rows: similar[np.unique(rows)].sum(axis=0)


def _ease(data: Interactions) -> Score:
    """EASE with λ = 500."""
    matrix = _binary(data)
    gram = (matrix.T @ matrix).astype(np.float64)
    inverse = np.linalg.inv(gram + 500.0 * np.eye(data.n_items))
    weights = (inverse / -np.diag(inverse)).astype(np.float32)
    np.fill_diagonal(weights, 0.0)
    return lambda rows: weights[np.unique(rows)].sum(axis=0)


def _sequential(data: Interactions) -> Score:
    """Transitions within 5 steps weighted 1/d, rows shrunk by 20; the last 10 events decayed by 0.8."""
    counts = np.zeros((data.n_items, data.n_items), np.float32)
    for distance in range(1, 6):
        same = data.users[distance:] == data.users[:-distance]
        np.add.at(counts, (data.rows[:-distance][same], data.rows[distance:][same]), 1.0 / distance)
    weights = counts / (counts.sum(axis=1, keepdims=True) + 20.0)

    def score(rows: npt.NDArray[np.int32]) -> Matrix:
        last = rows[-10:]
        return np.asarray((0.8 ** np.arange(len(last))[::-1]).astype(np.float32) @ weights[last])

    return score


def _ease_and_sequential(data: Interactions) -> Score:
    parts = (_ease(data), _sequential(data))
    return lambda rows: np.sum([_unit(part(rows)) for part in parts], axis=0)


def _unit(scores: Matrix) -> Matrix:
    spread = float(scores.std())
    return scores / spread if spread > 0 else scores
