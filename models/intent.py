"""Search intent: what somebody looks for right now, as the vector of their newest search text; the text is not kept.

Called by the ingress (packs), the store (keeps the bytes), the pipeline (lets it fade). Knows nothing of any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX_DIMENSION = 8192

Vector = npt.NDArray[np.float32]


def pack(vector: Vector) -> bytes:
    """Return a unit vector as float16, little-endian: half the bytes, and the third digit of a cosine at most."""
    return np.asarray(vector, "<f2").tobytes()


def unpack(data: bytes) -> Vector | None:
    """Return float32[dimension] of what `pack` wrote, or None where the bytes hold no vector."""
    if not is_packed(data):
        return None
    vector = np.frombuffer(data, "<f2").astype(np.float32)
    return vector if np.isfinite(vector).all() and vector.any() else None


def is_packed(data: bytes) -> bool:
    """Whether the length is one that `pack` gives."""
    return 0 < len(data) <= 2 * MAX_DIMENSION and len(data) % 2 == 0


def faded(vector: Vector | None, *, age_ms: int, life_s: float, dimension: int) -> Vector | None:
    """Return the vector shortened by its age: whole when new, half of it after half its life, None after all of it.

    None too where it is of another dimension than the items are: another encoder made it.
    """
    if vector is None or len(vector) != dimension or life_s <= 0:
        return None
    left = 1.0 - max(0, age_ms) / (life_s * 1000.0)
    return None if left <= 0.0 else np.asarray(vector * np.float32(left), np.float32)
