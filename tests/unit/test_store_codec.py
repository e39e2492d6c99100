"""Bytes in the store: round trips of every event, and no bytes that crash a reader."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.events import Event, EventType
from models.features import ANONYMOUS, UserFeatures
from models.store.checks import merge_features
from models.store.codec import decode_features, decode_stream, dedupe_digest, encode_record, encode_stream

ids = st.from_regex(r"[A-Za-z0-9._:~-]{1,128}", fullmatch=True)
events = st.builds(
    Event,
    event_id=ids,
    owner=ids,
    type=st.sampled_from(EventType),
    timestamp_ms=st.integers(0, 2**53 - 1),
    item_id=ids,
    value=st.floats(width=32, allow_nan=False),
    decision_id=st.none() | ids,
)


def fetched(records: list[bytes]) -> tuple[bytes, bytes, bytes]:
    """What the server's `fetch` function answers for these records."""
    return b"".join(r[:14] for r in records), b"\0".join(r[14:] for r in records), b""


@given(events)
def test_an_event_survives_the_stream(event: Event) -> None:
    assert decode_stream(encode_stream(event)) == event


@given(st.lists(events, max_size=20))
def test_events_survive_the_ring(log: list[Event]) -> None:
    features, skipped = decode_features(*fetched([encode_record(e) for e in log]))
    assert skipped == 0 and features.known == bool(log)
    assert features.item_ids == tuple(e.item_id for e in log)
    assert features.types.tolist() == [e.type for e in log]
    assert features.values.tolist() == [e.value for e in log]
    assert features.timestamps_ms.tolist() == [e.timestamp_ms for e in log]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 99), max_size=80))
def test_a_seen_set_comes_back_sorted_and_without_repeats(hashes: list[int]) -> None:
    stored = b"\x01seen\0\0\0" + b"".join(h.to_bytes(8, "little") for h in hashes)
    features, skipped = decode_features(b"", b"", stored)
    assert features.seen.tolist() == sorted(set(hashes)) and skipped == 0
    assert features.seen.dtype == np.uint64


heads = st.binary(min_size=14, max_size=14) | st.binary(min_size=12, max_size=12).map(lambda b: b"\x01\x02" + b)
items = st.binary(min_size=1, max_size=20).filter(lambda b: 0 not in b)


@given(st.lists(st.tuples(heads, items), max_size=9), st.binary(max_size=60))
def test_no_bytes_crash_a_reader(records: list[tuple[bytes, bytes]], seen: bytes) -> None:
    features, skipped = decode_features(*fetched([head + item for head, item in records])[:2], seen, 3)
    assert len(features.types) == len(features.item_ids) >= len(records) + 3 - skipped
    decode_stream(seen)


def test_values_of_another_schema_are_not_read() -> None:
    event = Event("e", "u", EventType.like, 5, "i")
    assert decode_stream(b"\x02" + encode_stream(event)[1:]) is None
    old, new = b"\x02" + encode_record(event)[1:], encode_record(event)
    features, skipped = decode_features(*fetched([old, new])[:2], b"\x02seen\0\0\0")
    assert (features.item_ids, skipped) == (("i",), 2)


def test_the_dedupe_key_separates_owners_and_ids() -> None:
    def digest(owner: str, event_id: str) -> bytes:
        return dedupe_digest(Event(event_id, owner, EventType.click, 1, "i"))

    assert digest("a", "b") == digest("a", "b")
    assert len({digest("a", "b"), digest("ab", ""), digest("b", "a"), digest("", "ab")}) == 4


def test_merging_with_nobody_changes_nothing() -> None:
    user = UserFeatures(("i",), np.ones(1, np.uint8), np.ones(1, np.float32), np.ones(1, np.int64), known=True)
    assert merge_features(user, ANONYMOUS, limit=5) is user
    assert merge_features(ANONYMOUS, user, limit=5) is user


def test_merging_keeps_the_newest_and_puts_the_user_first_at_equal_times() -> None:
    def profile(*items: tuple[str, int]) -> UserFeatures:
        count = len(items)
        times = np.array([t for _, t in items], np.int64)
        return UserFeatures(
            tuple(i for i, _ in items), np.ones(count, np.uint8), np.ones(count, np.float32), times, known=True
        )

    merged = merge_features(profile(("u1", 1), ("u2", 3)), profile(("s1", 1), ("s2", 2), ("s3", 3)), limit=4)
    assert merged.item_ids == ("s1", "s2", "u2", "s3")
