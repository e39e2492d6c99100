"""Search intent: what somebody looks for right now, as the vector of their newest search text; the text is not kept.

Vectors that are stored say which encoder made them, because vectors of two encoders mean nothing beside each other, of
equal dimensions or not. Called by the ingress (packs), the store (keeps the bytes), the pipeline (lets it fade). Knows
nothing of any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.ids import hash64

MAX_DIMENSION = 8192
TAG_BYTES = 8
_TAGGED = b"\x01"
"""Ends what has a tag. The length is odd then, so that it cannot be taken for a vector without one."""

Vector = npt.NDArray[np.float32]


def encoder_tag(encoder: str | None) -> bytes:
    """Return the tag of what the encoder of this URI makes, `TAG_BYTES` long; empty where nobody knows the encoder."""
    return b"" if encoder is None else hash64(encoder).to_bytes(TAG_BYTES, "little")


def pack(vector: Vector, tag: bytes = b"") -> bytes:
    """Return a unit vector as float16, little-endian: half the bytes, and the third digit of a cosine at most.

    `tag` (see `encoder_tag`) comes behind it, with a byte that ends it; without one nothing does.
    """
    data = np.asarray(vector, "<f2").tobytes()
    return data + tag + _TAGGED if tag else data


def unpack(data: bytes) -> Vector | None:
    """Return float32[dimension] of what `pack` wrote, or None where the bytes hold no vector."""
    if not is_packed(data):
        return None
    vector = np.frombuffer(_parts(data)[0], "<f2").astype(np.float32)
    return vector if np.isfinite(vector).all() and vector.any() else None


def packed_tag(data: bytes) -> bytes:
    """Return the tag that `pack` was given, empty where it was given none (or the bytes are not of `pack`)."""
    return _parts(data)[1]


def is_packed(data: bytes) -> bool:
    """Whether the length is one that `pack` gives."""
    vector, _ = _parts(data)
    return 0 < len(vector) <= 2 * MAX_DIMENSION and len(vector) % 2 == 0


def _parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the bytes of the vector and of the tag."""
    if len(data) % 2 == 0 or len(data) <= TAG_BYTES + 1 or not data.endswith(_TAGGED):
        return data, b""
    at = len(data) - TAG_BYTES - 1
    return data[:at], data[at:-1]


def faded(vector: Vector | None, *, age_ms: int, life_s: float, dimension: int) -> Vector | None:
    """Return the vector shortened by its age: whole when new, half of it after half its life, None after all of it.

    None too where it is of another dimension than the items are.
    """
    if vector is None or len(vector) != dimension or life_s <= 0:
        return None
    left = 1.0 - max(0, age_ms) / (life_s * 1000.0)
    return None if left <= 0.0 else np.asarray(vector * np.float32(left), np.float32)
