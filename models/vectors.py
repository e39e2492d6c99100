"""The file of an artifact's item vectors: float32, or float16 at half the bytes, read as float32 either way.

float16 keeps eleven bits of a number, so the cosine of a vector with what is read of it is 1 − 10⁻⁶ or better in any
dimension; lengths are off by 5·10⁻⁴ at most. Called by whatever opens embeddings; the embedding job writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

Dtype = Literal["float32", "float16"]
Vectors = npt.NDArray[np.float32]
WHOLE_BYTES = 128 << 20
"""Up to this size as float32 a file of float16 is read whole: small catalogs are scored whole at every request."""
_BLOCK = 2048


def open_vectors(path: Path, *, whole_bytes: int = WHOLE_BYTES) -> Vectors:
    """Return the vectors of a file as float32[rows, dim], mapped. Raises ValueError for another type of numbers.

    Those of a large file of float16 are a `HalfVectors`, which reads like the array it stands for.
    """
    found = np.load(str(path), mmap_mode="r", allow_pickle=False)
    if found.dtype == np.float32:
        return cast(Vectors, found)
    if found.dtype != np.float16:
        raise ValueError(f"{path.name}: holds {found.dtype}, not float32 or float16")
    if found.ndim != 2 or 4 * found.size <= whole_bytes:
        return np.asarray(found, np.float32)
    return cast(Vectors, HalfVectors(found))


class HalfVectors:
    """float32[rows, dim] that are float16 where they lie. A slice of rows stays there; rows by number are copied."""

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, halves: npt.NDArray[np.float16]) -> None:
        self._halves = halves
        self.shape = (int(halves.shape[0]), int(halves.shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """Return rows, or whatever numpy makes of `key`, as float32."""
        found = self._halves[key]
        return HalfVectors(found) if isinstance(key, slice) else np.asarray(found, np.float32)

    def __matmul__(self, query: Vectors) -> Vectors:
        """Return the inner product of every row with `query` (float32[dim] or [dim, n]), a few rows at a time."""
        parts = [self[at : at + _BLOCK].__array__() @ query for at in range(0, len(self), _BLOCK)]
        return np.concatenate([np.empty((0, *query.shape[1:]), np.float32), *parts])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return a copy of all of it, for numpy."""
        if copy is False:
            raise ValueError("float16 cannot be read as float32 without a copy")
        return np.asarray(self._halves).astype(np.float32 if dtype is None else dtype)
