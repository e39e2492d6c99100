"""EASE: a linear item-to-item model with a closed form (Steck, "Embarrassingly Shallow Autoencoders", 2019).

For catalogs up to some ten thousand items: the weight matrix is dense. Called by `behaviour.fit_behaviour`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.behaviour.interactions import Interactions
from models.opinion import DenseOpinion, Opinion, Rows, Scores

_FILE = "ease_weights.npy"


class EaseModel:
    """Scores of all items from a user's items through one matrix product."""

    kind = "ease"

    def __init__(self, weights: Scores) -> None:
        """`weights` float32[items, items] with a zero diagonal; may be mapped from disk."""
        self._weights = weights

    def fold_in(self, rows: Rows, weights: Scores) -> Opinion:
        """See `CollaborativeModel.fold_in`."""
        return DenseOpinion(self.scores(rows, weights))

    def scores(self, rows: Rows, weights: Scores) -> Scores:
        """Return float32[items] of the user whose items are `rows`, each counting `weights`."""
        if not len(rows):
            return np.zeros(len(self._weights), np.float32)
        return np.asarray(weights @ self._weights[rows], np.float32)

    def save(self, folder: Path) -> None:
        """See `CollaborativeModel.save`."""
        np.save(folder / _FILE, self._weights, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> EaseModel:
        """Map what `save` wrote."""
        return cls(np.load(folder / _FILE, mmap_mode="r", allow_pickle=False))


def user_item_matrix(interactions: Interactions, *, half_life_days: float | None = None) -> Any:
    """Return users × items as scipy CSR: 1 per pair, halved per half-life of its last event's age at the log's end."""
    from scipy.sparse import csr_array

    if not len(interactions):
        return csr_array((interactions.n_users, interactions.n_items), dtype=np.float32)
    key = interactions.users.astype(np.int64) * interactions.n_items + interactions.rows
    # Sorted by user and time: the last event of a pair is the first of the reversed columns.
    pairs, last = np.unique(key[::-1], return_index=True)
    times = interactions.timestamps_ms[::-1][last]
    values = np.ones(len(pairs), np.float32)
    if half_life_days is not None:
        age_days = (interactions.timestamps_ms.max() - times) / 86_400_000
        values = np.exp2(-age_days / half_life_days).astype(np.float32)
    shape = (interactions.n_users, interactions.n_items)
    return csr_array((values, (pairs // interactions.n_items, pairs % interactions.n_items)), shape=shape)


def fit_ease(interactions: Interactions, *, ridge: float = 500.0, half_life_days: float | None = None) -> EaseModel:
    """Solve EASE with the given ridge; events count less with age when a half-life is given."""
    from scipy.linalg import inv

    matrix = user_item_matrix(interactions, half_life_days=half_life_days)
    gram = np.asarray((matrix.T @ matrix).todense(), dtype=np.float64)
    gram[np.diag_indices_from(gram)] += ridge
    if not len(gram):
        return EaseModel(np.empty((0, 0), np.float32))
    inverse = inv(gram, overwrite_a=True, check_finite=False)
    weights = inverse / -np.diag(inverse)
    weights[np.diag_indices_from(weights)] = 0.0
    return EaseModel(weights.astype(np.float32))
