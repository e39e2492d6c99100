"""What users say of themselves: labels, and a vector of all they said; the text they wrote is not kept.

A declaration stands in for history while there is next to none. Called by the ingress (makes one), the store (keeps
it), retrieval (lets it count less with every event). Knows nothing of any of them.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from models import intent

SCHEMA_VERSION = 1
_HEADER = struct.Struct(">BqI")

Labels = tuple[tuple[str, str], ...]
"""Attribute names with one value each; a name comes as often as it has values."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """What somebody declared at `declared_ms`. `vector` float32[dimension of the encoder then] of unit length.

    `tag` says which encoder made it (`models.intent.encoder_tag`); empty for what was stored before there were tags.
    """

    labels: Labels = ()
    vector: intent.Vector | None = None
    declared_ms: int = 0
    tag: bytes = b""

    def __bool__(self) -> bool:
        """Whether it says anything."""
        return bool(self.labels) or self.vector is not None


def pack(declaration: Declaration) -> bytes:
    """Return the stored bytes: version u8, time i64 (ms), length of the labels u32 (big-endian), labels, vector.

    Labels are JSON; the vector is what `models.intent.pack` gives, or nothing.
    """
    labels = json.dumps(declaration.labels, ensure_ascii=False, separators=(",", ":")).encode()
    vector = b"" if declaration.vector is None else intent.pack(declaration.vector, declaration.tag)
    return _HEADER.pack(SCHEMA_VERSION, declaration.declared_ms, len(labels)) + labels + vector


def unpack(data: bytes) -> Declaration | None:
    """Return what `pack` wrote, or None where the bytes are not of this schema."""
    if len(data) < _HEADER.size:
        return None
    version, declared_ms, length = _HEADER.unpack_from(data)
    body, rest = data[_HEADER.size : _HEADER.size + length], data[_HEADER.size + length :]
    vector = intent.unpack(rest) if rest else None
    if version != SCHEMA_VERSION or len(body) != length or (rest and vector is None):
        return None
    try:
        labels = tuple((name, value) for name, value in json.loads(body))
    except (ValueError, TypeError):  # no JSON, no UTF-8, or not pairs
        return None
    sound = all(isinstance(part, str) for pair in labels for part in pair)
    return Declaration(labels, vector, declared_ms, intent.packed_tag(rest)) if sound else None


def later(one: Declaration | None, other: Declaration | None) -> Declaration | None:
    """Return the one declared later; of equal times, the first."""
    if one is None or other is None:
        return other if one is None else one
    return other if other.declared_ms > one.declared_ms else one


def strength(events: int, *, over: int) -> float:
    """Return how much a declaration counts beside so many events: 1 beside none, falling evenly to 0 at `over`."""
    return max(0.0, 1.0 - events / over)
