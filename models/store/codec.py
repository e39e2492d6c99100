"""How events become bytes in the store and features again; every value carries its schema version.

Called by `RedisStore` and the stream consumer. Knows nothing of servers; `functions.lua` reads the same formats.

* ring record: version u8, type u8, time i64 (ms), value f32, item id; big-endian
* stream payload: a ring record's 14 bytes, then owner, event id, item id, decision id, joined by NUL
* seen set: 8 bytes of header, then 64-bit hashes, little-endian, oldest first
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from models.events import Event, EventType
from models.features import UserFeatures
from models.store.port import SCHEMA_VERSION

_HEADER = struct.Struct(">BBqf")
_LENGTH = struct.Struct(">H")
_SEEN_HEADER = bytes([SCHEMA_VERSION]) + b"seen\0\0\0"
_TYPES = frozenset(int(t) for t in EventType)


def encode_record(event: Event) -> bytes:
    """Return the ring record of an event that has an item."""
    return _header(event) + (event.item_id or "").encode()


def encode_stream(event: Event) -> bytes:
    """Return the stream payload of an event."""
    ids = (event.owner, event.event_id, event.item_id or "", event.decision_id or "")
    return _header(event) + "\0".join(ids).encode()


def decode_stream(payload: bytes) -> Event | None:
    """Return the event of a stream payload, or None where the bytes are not one of this schema."""
    head = _read_header(payload)
    if head is None:
        return None
    try:
        owner, event_id, item_id, decision_id = payload[_HEADER.size :].decode().split("\0")
    except ValueError:  # also what bytes that are no UTF-8 raise
        return None
    kind, time_ms, value = head
    return Event(event_id, owner, EventType(kind), time_ms, item_id or None, value, decision_id or None)


def dedupe_digest(event: Event) -> bytes:
    """Return 16 bytes that stand for (owner, event id): one user's ids never collide with another's."""
    return hashlib.blake2b(f"{event.owner}\0{event.event_id}".encode(), digest_size=16).digest()


def decode_features(ring: bytes, seen: bytes) -> tuple[UserFeatures, int]:
    """Return the features of one owner and how many records were skipped because they could not be read.

    `ring` holds records, each after its length (2 bytes, big-endian), oldest first.
    """
    skipped = 0
    item_ids: list[str] = []
    heads: list[tuple[int, int, float]] = []
    for record in _records(ring):
        head = _read_header(record)
        if head is None or not (item := _text(record[_HEADER.size :])):
            skipped += 1
            continue
        item_ids.append(item)
        heads.append(head)
    hashes = _decode_seen(seen)
    if hashes is None:
        skipped += 1
        hashes = np.empty(0, np.uint64)
    types, times, values = zip(*heads, strict=True) if heads else ((), (), ())
    features = UserFeatures(
        item_ids=tuple(item_ids),
        types=np.array(types, np.uint8),
        values=np.array(values, np.float32),
        timestamps_ms=np.array(times, np.int64),
        seen=np.unique(hashes),
        known=bool(ring),
    )
    return features, skipped


def _header(event: Event) -> bytes:
    return _HEADER.pack(SCHEMA_VERSION, event.type, event.timestamp_ms, event.value)


def _read_header(record: bytes) -> tuple[int, int, float] | None:
    if len(record) < _HEADER.size:
        return None
    version, kind, time_ms, value = _HEADER.unpack_from(record)
    return (kind, time_ms, value) if version == SCHEMA_VERSION and kind in _TYPES else None


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


def _records(ring: bytes) -> Iterator[bytes]:
    at = 0
    while at + _LENGTH.size <= len(ring):
        (length,) = _LENGTH.unpack_from(ring, at)
        at += _LENGTH.size
        yield ring[at : at + length]
        at += length


def _decode_seen(seen: bytes) -> npt.NDArray[np.uint64] | None:
    if not seen:
        return np.empty(0, np.uint64)
    if not seen.startswith(_SEEN_HEADER) or len(seen) % 8:
        return None
    return np.frombuffer(seen, "<u8", offset=len(_SEEN_HEADER)).astype(np.uint64)
