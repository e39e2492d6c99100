"""The port of vector indexes, and the types that pass through it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Vectors = npt.NDArray[np.float32]
Hits = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]

EXACT_BELOW = 0.05
"""Below this share of allowed rows an exact search over them is cheaper and surer than over-fetching."""


class VectorIndex(Protocol):
    """Finds the rows whose vectors are nearest to one query."""

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """Return (rows int32[m], scores float32[m]), m ≤ n, best first, ties by row. `query` is float32[dim]."""
        ...
