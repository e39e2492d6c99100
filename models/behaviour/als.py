"""Implicit ALS for large catalogs, through the `implicit` package; users are folded in by one small solve.

After Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (2008): item factors Y, a
user vector is (YᵀY + Σ α w yyᵀ + λI)⁻¹ Σ (1 + α w) y. Called by `behaviour.fit_behaviour`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.behaviour.ease import user_item_matrix
from models.behaviour.interactions import Interactions
from models.index import FlatIndex, VectorIndex, load_faiss, write_faiss
from models.index_build import build_faiss
from models.opinion import DenseOpinion, LinearOpinion, Mask, Opinion, Rows, Scores

_FILE = "als_factors.npy"
_TERMS = "als_terms.npy"
DENSE_BELOW = 20_000
"""Up to this many items all scores are computed at once; above, a FAISS index over the factors is asked."""


class AlsModel:
    """Item factors with the parts of the fold-in that are the same for all users computed once."""

    kind = "als"

    def __init__(self, factors: Scores, index: VectorIndex, *, alpha: float = 1.0, ridge: float = 0.05) -> None:
        """`factors` float32[items, dim]; `index` searches them by inner product."""
        self._factors, self._index, self._alpha, self._ridge = factors, index, alpha, ridge
        self._gram = factors.T @ factors
        sample = factors[:: max(1, len(factors) // 50_000)]
        self._covariance = np.cov(sample, rowvar=False) if len(sample) > 1 else np.zeros_like(self._gram)

    def fold_in(self, rows: Rows, weights: Scores) -> Opinion:
        """See `CollaborativeModel.fold_in`."""
        if not len(rows):
            return DenseOpinion(np.zeros(len(self._factors), np.float32))
        taken = self._factors[rows]
        confidence = self._alpha * weights
        system = self._gram + (taken.T * confidence) @ taken + self._ridge * np.eye(taken.shape[1])
        user = np.linalg.solve(system, taken.T @ (1.0 + confidence)).astype(np.float32)
        if len(self._factors) <= DENSE_BELOW:
            return DenseOpinion(np.asarray(self._factors @ user, np.float32))
        spread = float(np.sqrt(max(0.0, float(user @ self._covariance @ user))))
        return LinearOpinion(self._factors, user, spread=spread, search=self._search)

    def _search(self, query: Scores, n: int, allowed: Mask) -> Rows:
        return self._index.search(query, n, allowed=allowed)[0]

    def save(self, folder: Path) -> None:
        """See `CollaborativeModel.save`."""
        np.save(folder / _FILE, self._factors, allow_pickle=False)
        np.save(folder / _TERMS, np.array([self._alpha, self._ridge]), allow_pickle=False)
        if len(self._factors) > DENSE_BELOW:
            write_faiss(build_faiss(np.ascontiguousarray(self._factors)).index, folder)

    @classmethod
    def load(cls, folder: Path) -> AlsModel:
        """Map what `save` wrote."""
        factors = np.load(folder / _FILE, mmap_mode="r", allow_pickle=False)
        index = load_faiss(folder, factors) if len(factors) > DENSE_BELOW else FlatIndex(factors)
        alpha, ridge = np.load(folder / _TERMS, allow_pickle=False)
        return cls(factors, index, alpha=float(alpha), ridge=float(ridge))


def fit_als(
    interactions: Interactions, *, dimension: int = 64, rounds: int = 15, alpha: float = 1.0, ridge: float = 0.05
) -> AlsModel:
    """Fit item factors; deterministic for the same interactions on one machine."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    # implicit parallelises over users itself; BLAS threads inside its threads only stand in each other's way.
    with threadpool_limits(limits=1, user_api="blas"):
        model = AlternatingLeastSquares(
            factors=dimension, iterations=rounds, alpha=alpha, regularization=ridge, random_state=0, num_threads=1
        )
        model.fit(csr_matrix(user_item_matrix(interactions)), show_progress=False)
    factors = np.ascontiguousarray(model.item_factors, np.float32)
    return AlsModel(factors, FlatIndex(factors), alpha=alpha, ridge=ridge)
