"""Vector indexes: nearest items by inner product, on the GPU where there is one.

`FaissIndex` is the real one; `FlatIndex` is exact numpy, the fake and the yardstick of recall. Returned rows
never violate `allowed`: rare masks are answered by exact search over the allowed rows, common ones by
over-fetching, because several FAISS kinds ignore selectors silently. `models.index_build` makes the indexes. Called
by the content sources and by ALS.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from models.index_port import EXACT_BELOW, Hits, Mask, VectorIndex, Vectors
from models.shards import Shard, load_shards, read_shards

__all__ = ["FaissIndex", "FlatIndex", "Hits", "Mask", "VectorIndex", "Vectors", "load_faiss", "write_faiss"]

INDEX_FILE = "index.faiss"
GPU_MOST = 2048
"""A GPU index of FAISS answers at most this many rows."""
GPU_KINDS = ("IndexFlat", "IndexFlatIP", "IndexIVFFlat", "IndexIVFPQ")
"""What FAISS can move to a GPU; other kinds are searched on the CPU."""
_BLOCK = 16_384


class FlatIndex:
    """Exact search in numpy."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        return _exact(self._vectors, allowed, query, n)


def _exact(vectors: Vectors, allowed: Mask | None, query: Vectors, n: int) -> Hits:
    rows = np.arange(len(vectors)) if allowed is None else np.flatnonzero(allowed)
    parts = [np.empty(0, np.float32)]
    # In blocks: half of a large catalog gathered at once would be gigabytes.
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        first, last = int(some[0]), int(some[-1]) + 1
        if last - first <= 3 * len(some):  # reading on is cheaper than copying most of it together
            parts.append((vectors[first:last] @ query)[some - first])
        else:
            parts.append(vectors[some] @ query)
    scores = np.concatenate(parts)
    best = np.argpartition(-scores, n - 1)[:n] if n < len(rows) else np.arange(len(rows))
    best = best[np.lexsort((rows[best], -scores[best]))]
    return rows[best].astype(np.int32), scores[best].astype(np.float32)


class FaissIndex:
    """A FAISS index with the vectors beside it for exact search under rare filters."""

    def __init__(self, index: Any, vectors: Vectors, *, on_gpu: bool = False) -> None:
        """`index` is any inner-product FAISS index over all rows of `vectors` (float32[items, dim], may be mapped).

        An index `on_gpu` is searched by one thread at a time and for at most `GPU_MOST` rows; more are found exactly.
        """
        self.index = index
        self._vectors = vectors
        self._most = GPU_MOST if on_gpu else len(vectors)
        self._turn: AbstractContextManager[Any] = Lock() if on_gpu else nullcontext()

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        total = len(self._vectors)
        usable = total if allowed is None else int(np.count_nonzero(allowed))
        n = min(n, usable)
        if n <= 0:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        share = usable / total
        # Half more than masking would cost on average, since it is often what is near that is forbidden.
        wanted = min(n + total - usable, int(n / share * 1.5) + 16) if usable < total else n
        if share >= EXACT_BELOW and wanted <= self._most:
            rows, scores = self._fetch(query, wanted)
            if allowed is not None and usable < total:
                keep = allowed[rows]
                rows, scores = rows[keep][:n], scores[keep][:n]
            if len(rows) == n:
                return rows, scores
        return _exact(self._vectors, allowed, query, n)

    def _fetch(self, query: Vectors, n: int) -> Hits:
        with self._turn:
            found_scores, found = self.index.search(query.reshape(1, -1), n)
        scores, rows = found_scores[0], found[0]
        if rows[-1] < 0:  # FAISS fills up at the end when what it read held fewer rows
            there = rows >= 0
            scores, rows = scores[there], rows[there]
        order = np.lexsort((rows, -scores))
        return rows[order].astype(np.int32), scores[order]


def write_faiss(index: Any, folder: Path, *, name: str = INDEX_FILE) -> None:
    """Write `index` into `folder` as the file `name`."""
    import faiss

    faiss.write_index(index, str(folder / name))


def load_faiss(folder: Path, vectors: Vectors) -> VectorIndex:
    """Load an index that an artifact check has already verified. Raises ValueError when it does not fit `vectors`.

    An index in pieces is loaded piece by piece, spread over the GPUs there are. A FAISS file is trusted input to native
    code, hence the byte limit on top of the artifact's sha256.
    """
    import faiss

    shards = read_shards(folder, len(vectors))
    if not shards:
        return _load(folder / INDEX_FILE, vectors, faiss, 0)

    def load(shard: Shard, part: Vectors, device: int) -> VectorIndex:
        return _load(folder / shard.name, part, faiss, device)

    return load_shards(shards, vectors, load, exact=FlatIndex(vectors), devices=gpus(faiss))


def load_piece(folder: Path, shard: Shard, vectors: Vectors, number: int) -> VectorIndex:
    """Load one piece of the index over `vectors`, the `number`-th of this process, which says on which GPU."""
    import faiss

    device = number % max(1, gpus(faiss))
    return _load(folder / shard.name, vectors[shard.start : shard.stop], faiss, device)


def _load(path: Path, vectors: Vectors, faiss: Any, device: int) -> FaissIndex:
    if not path.is_file():
        raise ValueError(f"{path.name}: missing")
    if hasattr(faiss, "set_deserialization_vector_byte_limit"):
        faiss.set_deserialization_vector_byte_limit(2 * path.stat().st_size + (1 << 20))
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(f"{path.name}: FAISS cannot read it") from error
    if (index.ntotal, index.d) != vectors.shape:
        raise ValueError(f"{path.name}: {index.ntotal} × {index.d} does not fit embeddings {vectors.shape}")
    placed = to_best_device(index, faiss, device=device)
    return FaissIndex(placed, vectors, on_gpu=placed is not index)


def to_best_device(index: Any, faiss: Any, *, device: int = 0) -> Any:
    """Move `index` to GPU `device` where FAISS and machine have one and it holds that kind; else return it as is."""
    if gpus(faiss) == 0 or type(index).__name__ not in GPU_KINDS:
        return index
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device, index)


def gpus(faiss: Any) -> int:
    """Return how many GPUs the library `faiss` can use here: none in a build for the CPU."""
    count: Callable[[], int] | None = getattr(faiss, "get_num_gpus", None)
    return count() if count is not None and hasattr(faiss, "StandardGpuResources") else 0
