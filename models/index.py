"""Vector indexes: nearest items by inner product, on the GPU where there is one.

`FaissIndex` is the real one; `FlatIndex` is exact numpy, the fake and the yardstick of recall. Returned rows
never violate `allowed`: rare masks are answered by exact search over the allowed rows, common ones by
over-fetching, because several FAISS kinds ignore selectors silently. Called by the semantic source.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Vectors = npt.NDArray[np.float32]
Hits = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]

INDEX_FILE = "index.faiss"
EXACT_BELOW = 0.05
"""Below this share of allowed rows an exact search over them is cheaper and surer than over-fetching."""
GPU_MOST = 2048
"""A GPU index of FAISS answers at most this many rows."""


class VectorIndex(Protocol):
    """Finds the rows whose vectors are nearest to one query."""

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """Return (rows int32[m], scores float32[m]), m ≤ n, best first, ties by row. `query` is float32[dim]."""
        ...


class FlatIndex:
    """Exact search in numpy."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        rows = np.arange(len(self._vectors)) if allowed is None else np.flatnonzero(allowed)
        return _exact(self._vectors, rows, query, n)


def _exact(vectors: Vectors, rows: npt.NDArray[Any], query: Vectors, n: int) -> Hits:
    scores = vectors[rows] @ query
    best = np.argpartition(-scores, n - 1)[:n] if n < len(rows) else np.arange(len(rows))
    best = best[np.lexsort((rows[best], -scores[best]))]
    return rows[best].astype(np.int32), scores[best].astype(np.float32)


class FaissIndex:
    """A FAISS index with the vectors beside it for exact search under rare filters."""

    def __init__(self, index: Any, vectors: Vectors, *, on_gpu: bool = False) -> None:
        """`index` is any inner-product FAISS index over all rows of `vectors` (float32[items, dim], may be mapped).

        An index `on_gpu` is searched by one thread at a time and for at most `GPU_MOST` rows; more are found exactly.
        """
        self._index = index
        self._vectors = vectors
        self._most = GPU_MOST if on_gpu else len(vectors)
        self._turn: AbstractContextManager[Any] = Lock() if on_gpu else nullcontext()

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        total = len(self._vectors)
        share = 1.0 if allowed is None else float(allowed.mean()) if total else 0.0
        if n <= 0 or not total or share == 0.0:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        wanted = min(total, n if allowed is None else int(n / share * 1.5) + 16)
        if share >= EXACT_BELOW and wanted <= self._most:
            rows, scores = self._fetch(query, wanted)
            keep = np.ones(len(rows), bool) if allowed is None else allowed[rows]
            if allowed is None or int(keep.sum()) >= min(n, int(allowed.sum())):
                return rows[keep][:n], scores[keep][:n]
        return _exact(self._vectors, np.arange(total) if allowed is None else np.flatnonzero(allowed), query, n)

    def _fetch(self, query: Vectors, n: int) -> Hits:
        with self._turn:
            scores, rows = self._index.search(query.reshape(1, -1), n)
        at = np.flatnonzero(rows[0] >= 0)
        at = at[np.lexsort((rows[0][at], -scores[0][at]))]
        return rows[0][at].astype(np.int32), scores[0][at].astype(np.float32)


def build_faiss(vectors: Vectors) -> Any:
    """Build the index kind that suits the size: flat up to 20,000 rows, IVF-flat above (see facts in README).

    Deterministic for the same vectors. Runs on the CPU; `to_best_device` moves it at load time.
    """
    import faiss

    count, dimension = vectors.shape
    if count <= 20_000:
        index: Any = faiss.IndexFlatIP(dimension)
    else:
        lists = int(4 * np.sqrt(count))
        index = faiss.index_factory(dimension, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[np.random.default_rng(0).permutation(count)[: lists * 64]])
        index.nprobe = max(8, lists // 32)
    index.add(vectors)
    return index


def write_faiss(index: Any, folder: Path) -> None:
    """Write `index` into `folder`."""
    import faiss

    faiss.write_index(index, str(folder / INDEX_FILE))


def load_faiss(folder: Path, vectors: Vectors) -> FaissIndex:
    """Load an index that an artifact check has already verified. Raises ValueError when it does not fit `vectors`.

    A FAISS file is trusted input to native code, hence the byte limit on top of the artifact's sha256.
    """
    import faiss

    path = folder / INDEX_FILE
    if hasattr(faiss, "set_deserialization_vector_byte_limit"):
        faiss.set_deserialization_vector_byte_limit(2 * path.stat().st_size + (1 << 20))
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path.name}: FAISS cannot read it") from error
    if (index.ntotal, index.d) != vectors.shape:
        raise ValueError(f"{path.name}: {index.ntotal} × {index.d} does not fit embeddings {vectors.shape}")
    placed = to_best_device(index, faiss)
    return FaissIndex(placed, vectors, on_gpu=placed is not index)


def to_best_device(index: Any, faiss: Any) -> Any:
    """Move `index` to GPU 0 when this FAISS build and machine have one, else return it as it is."""
    count: Callable[[], int] | None = getattr(faiss, "get_num_gpus", None)
    if count is None or count() == 0 or not hasattr(faiss, "StandardGpuResources"):
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
