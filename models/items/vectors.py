"""The vectors of a release and of the items that changed since: one matrix to read from, without copying the release.

`LiveVectors` reads like the numpy array it extends; `LiveIndex` searches the release's index and, exactly, the few
rows it does not know. Called by the retrieval engine, rankers and evidence through the live bundle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.index import Hits, Mask, VectorIndex, Vectors


class LiveVectors:
    """float32[items, dim]: the rows of a release, some of them replaced, and more rows at the end. Immutable."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, release: Vectors, rows: npt.NDArray[np.int32], vectors: Vectors) -> None:
        """`rows` ascend; those beyond the release follow it without a gap. `vectors` float32[len(rows), dim]."""
        self.release, self.rows, self._vectors = release, rows, vectors
        self._replaced = int(np.searchsorted(rows, len(release)))
        self.shape = (len(release) + len(rows) - self._replaced, int(release.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Vectors:
        """Return rows by an index array, a slice or (one row) an integer, as numpy would."""
        if isinstance(key, slice):
            return self[np.arange(*key.indices(len(self)))]
        if np.ndim(key) == 0:
            row: Vectors = self[np.array([int(key)])][0]
            return row
        wanted = np.asarray(key, np.int64)
        at = np.minimum(np.searchsorted(self.rows, wanted), max(0, len(self.rows) - 1))
        live = self.rows[at] == wanted if len(self.rows) else np.zeros(len(wanted), bool)
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        found[~live] = self.release[wanted[~live]]
        found[live] = self._vectors[at[live]]
        return found

    def __matmul__(self, query: Vectors) -> Vectors:
        """Return the inner product of every row with `query`, float32[items]."""
        scores = np.empty(len(self), np.float32)
        scores[: len(self.release)] = self.release @ query
        scores[self.rows] = self._vectors @ query
        return scores


class LiveIndex:
    """A `VectorIndex` over `LiveVectors`: the release's index, and an exact search over the rows that changed."""

    def __init__(self, release: VectorIndex, vectors: LiveVectors) -> None:
        self._release, self._vectors = release, vectors

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        vectors = self._vectors
        mask = np.ones(len(vectors), bool) if allowed is None else allowed
        unchanged = mask[: len(vectors.release)].copy()
        unchanged[vectors.rows[vectors.rows < len(unchanged)]] = False
        rows, scores = self._release.search(query, n, allowed=unchanged)
        live = vectors.rows[mask[vectors.rows]]
        rows = np.concatenate([rows, live]).astype(np.int32)
        scores = np.concatenate([scores, vectors[live] @ query]).astype(np.float32)
        best = np.lexsort((rows, -scores))[:n]
        return rows[best], scores[best]
