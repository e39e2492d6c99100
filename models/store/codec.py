"""How events become bytes in the store and features again; every value carries its schema version.

Called by `RedisStore` and the stream consumer. Knows nothing of servers; `functions.lua` reads the same formats.

* ring record: version u8, type u8, time i64 (ms), value f32, item id; big-endian
* stream entry: `d` the payload, `n` where the item was new to the owner, `p` the owner's newest ring record before it
* stream payload: a ring record's 14 bytes, then owner, event id, item id, decision id, joined by NUL
* seen set: 8 bytes of header, then 64-bit hashes, little-endian, oldest first
* intent: version u8, time i64 (ms, big-endian), then the vector and, where it has one, its tag (`models.intent`)
* declaration: see `models.declared.pack`
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

from models import declared
from models.events import POSITIVE_TYPES, Event, EventType
from models.features import UserFeatures
from models.ids import is_valid_id
from models.intent import packed_tag, unpack
from models.store.checks import check_events
from models.store.port import SCHEMA_VERSION
from models.store.streams import Previous, StreamEntry

_HEADER = struct.Struct(">BBqf")
_COLUMNS = np.dtype([("version", "u1"), ("type", "u1"), ("time", ">i8"), ("value", ">f4")])
_INTENT = struct.Struct(">Bq")
_SEEN_HEADER = bytes([SCHEMA_VERSION]) + b"seen\0\0\0"
_IS_TYPE = np.isin(np.arange(256), [int(t) for t in EventType])
_POSITIVE = frozenset(int(t) for t in POSITIVE_TYPES)
_NOT_ASCII = "\N{REPLACEMENT CHARACTER}"


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


def decode_entry(entry_id: bytes, fields: list[bytes] | None) -> StreamEntry:
    """Return a stream entry; its `event` is None, with a reason, where it could not be applied."""
    found = dict(zip(fields[::2], fields[1::2], strict=False)) if fields else {}
    payload = found.get(b"d", b"")
    event, reason = decode_stream(payload), None
    if event is None:
        reason = "trimmed before it was read" if fields is None else "not an event of this schema"
    else:
        try:
            check_events([event])
        except ValueError as error:
            event, reason = None, str(error)
    head = _read_header(found.get(b"p", b""))
    previous = None
    if head is not None and head[0] in _POSITIVE:
        previous = Previous(found[b"p"][_HEADER.size :].decode("ascii", errors="replace"), head[1])
        previous = previous if is_valid_id(previous.item_id) else None
    return StreamEntry(entry_id.decode(), event, new=b"n" in found, previous=previous, reason=reason, payload=payload)


def encode_intent(event: Event, *, now_ms: int) -> bytes:
    """Return the stored intent of a search, empty where the event brings none.

    A date in the future counts as now: it would outlive searches that come after it.
    """
    if event.intent is None:
        return b""
    return _INTENT.pack(SCHEMA_VERSION, min(event.timestamp_ms, now_ms)) + event.intent


def decode_intent(value: bytes) -> tuple[npt.NDArray[np.float32], int, bytes] | None:
    """Return vector, time and tag of a stored intent, or None where the bytes are not one of this schema."""
    if len(value) <= _INTENT.size:
        return None
    version, time_ms = _INTENT.unpack_from(value)
    vector = unpack(value[_INTENT.size :])
    if version != SCHEMA_VERSION or vector is None:
        return None
    return vector, time_ms, packed_tag(value[_INTENT.size :])


def dedupe_digest(event: Event) -> bytes:
    """Return 16 bytes that stand for (owner, event id): one user's ids never collide with another's."""
    return hashlib.blake2b(f"{event.owner}\0{event.event_id}".encode(), digest_size=16).digest()


def decode_features(
    heads: bytes, items: bytes, seen: bytes, left_out: int = 0, intent: bytes = b"", declaration: bytes = b""
) -> tuple[UserFeatures, int]:
    """Return the features of one owner and how many values were skipped because they could not be read.

    The arguments are the reply of the `fetch` function: headers of the ring's records, oldest first, their item ids
    joined by NUL, the seen set, how many records the server left out, the intent and the declaration
    (empty: none).
    """
    columns = np.frombuffer(heads, _COLUMNS)
    item_ids = tuple(items.decode("ascii", errors="replace").split("\0")) if heads else ()
    readable = (columns["version"] == SCHEMA_VERSION) & _IS_TYPE[columns["type"]]
    if _NOT_ASCII in "".join(item_ids):
        readable &= np.array([_NOT_ASCII not in item for item in item_ids])
    skipped = left_out
    if not readable.all():
        skipped += int((~readable).sum())
        columns = columns[readable]
        item_ids = tuple(item for item, good in zip(item_ids, readable, strict=True) if good)
    hashes, wanted, said = _decode_seen(seen), decode_intent(intent), declared.unpack(declaration)
    features = UserFeatures(
        item_ids=item_ids,
        types=columns["type"].astype(np.uint8),
        values=columns["value"].astype(np.float32),
        timestamps_ms=columns["time"].astype(np.int64),
        seen=np.empty(0, np.uint64) if hashes is None else hashes,
        known=bool(heads) or left_out > 0,
        intent=None if wanted is None else wanted[0],
        intent_ms=0 if wanted is None else wanted[1],
        intent_tag=b"" if wanted is None else wanted[2],
        declared=said,
    )
    unreadable = (hashes is None) + (intent != b"" and wanted is None) + (declaration != b"" and said is None)
    return features, skipped + unreadable


def _header(event: Event) -> bytes:
    return _HEADER.pack(SCHEMA_VERSION, event.type, event.timestamp_ms, event.value)


def _read_header(record: bytes) -> tuple[int, int, float] | None:
    if len(record) < _HEADER.size:
        return None
    version, kind, time_ms, value = _HEADER.unpack_from(record)
    return (kind, time_ms, value) if version == SCHEMA_VERSION and _IS_TYPE[kind] else None


def _decode_seen(seen: bytes) -> npt.NDArray[np.uint64] | None:
    if not seen:
        return np.empty(0, np.uint64)
    if not seen.startswith(_SEEN_HEADER) or len(seen) % 8:
        return None
    hashes = _sorted(np.frombuffer(seen, "<u8", offset=len(_SEEN_HEADER)).astype(np.uint64))
    # The server adds no hash twice; `np.unique` would cost three times as much to find that out.
    return hashes if (hashes[1:] != hashes[:-1]).all() else np.unique(hashes)


def _sorted(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the values in ascending order; five times faster than `np.sort` for 20,000 hashes.

    Ordering 16 bits takes time that grows with their number, and hashes are then nearly in order, which the stable sort
    makes use of. Correct for any values.
    """
    nearly = hashes[np.argsort((hashes >> np.uint64(48)).astype(np.uint16), kind="stable")]
    nearly.sort(kind="stable")
    return nearly
