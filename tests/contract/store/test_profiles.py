"""What a profile holds after events arrived: the same on every store, and the same as offline."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from models.events import Event, EventType, session_owner
from models.features import RECENT_EVENTS, UserFeatures, features_from_events
from models.ids import hash64
from models.store.port import EventStatus, OnlineStore, StoreLimits

NOW = int(time.time() * 1000)
AS_IT_CAME = StoreLimits(repeat_window_s=0, events_per_owner_s=0)
"""For logs made by chance, in which the same comes twice and everything at once."""


def event(number: int, owner: str = "u1", item: str | None = None, **options: object) -> Event:
    fields: dict[str, object] = {"type": EventType.click, "timestamp_ms": NOW + number, **options}
    return Event(f"e{number}", owner, item_id=item or f"i{number}", **fields)  # type: ignore[arg-type]


def log(seed: int, count: int, owners: int = 5, items: int = 300) -> list[Event]:
    """A random log of every type, with equal times in it, in the order of time."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(NOW, NOW + count // 2, count))
    return [
        Event(
            event_id=f"{seed}-{i}",
            owner=f"u{rng.integers(owners)}",
            type=(kind := EventType(int(rng.integers(10)))),
            timestamp_ms=int(times[i]),
            item_id=None if kind == EventType.search else f"i{rng.integers(items)}",
            value=float(np.float32(rng.random())),
            decision_id="d1" if i % 3 else None,
        )
        for i in range(count)
    ]


def offline(events: list[Event], owner: str) -> UserFeatures:
    mine = [e for e in events if e.owner == owner]
    return features_from_events(
        [e.item_id or "" for e in mine],
        np.array([e.type for e in mine], np.uint8),
        np.array([e.value for e in mine], np.float32),
        np.array([e.timestamp_ms for e in mine], np.int64),
    )


def assert_same(found: UserFeatures, expected: UserFeatures) -> None:
    assert found.item_ids == expected.item_ids
    for column in ("types", "values", "timestamps_ms", "seen"):
        left, right = getattr(found, column), getattr(expected, column)
        assert left.dtype == right.dtype, column
        np.testing.assert_array_equal(left, right, err_msg=column)
    assert (found.known, found.stale) == (expected.known, expected.stale)


async def append_all(store: OnlineStore, events: list[Event], size: int) -> None:
    for start in range(0, len(events), size):
        statuses = await store.append("main", events[start : start + size], now_ms=NOW)
        assert set(statuses) == {EventStatus.accepted}


@pytest.mark.parametrize("size", [1, 500])
async def test_a_replayed_log_gives_the_features_that_training_sees(open_store, size: int) -> None:
    store = await open_store(limits=AS_IT_CAME)
    events = log(seed=size, count=400 if size == 1 else 3000)
    await append_all(store, events, size)
    for owner in {e.owner for e in events}:
        assert_same(await store.fetch("main", owner, None, timeout_s=5), offline(events, owner))


async def test_events_that_arrive_out_of_order_end_up_in_the_order_of_time(open_store) -> None:
    store = await open_store(limits=AS_IT_CAME)
    events = log(seed=7, count=1500, owners=2)
    arrival = np.random.default_rng(1).permutation(len(events))
    shuffled = [events[i] for i in arrival]
    await append_all(store, shuffled, 250)
    in_time = sorted(shuffled, key=lambda e: e.timestamp_ms)  # stable: equal times by arrival
    for owner in ("u0", "u1"):
        assert_same(await store.fetch("main", owner, None, timeout_s=5), offline(in_time, owner))


async def test_a_late_event_is_placed_right_among_equal_records(open_store) -> None:
    store = await open_store(limits=AS_IT_CAME)
    twins = [event(i, item="same", timestamp_ms=NOW + t) for i, t in enumerate([0, 5, 5, 9])]
    late = event(9, item="late", timestamp_ms=NOW + 5)
    await append_all(store, [*twins, late], 500)
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert found.item_ids == ("same", "same", "same", "late", "same")


async def test_the_ring_keeps_the_newest_events_and_the_seen_set_keeps_all_items(store: OnlineStore) -> None:
    await append_all(store, [event(i) for i in range(RECENT_EVENTS + 44)], 100)
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert found.item_ids == tuple(f"i{i}" for i in range(44, RECENT_EVENTS + 44))
    assert len(found.seen) == RECENT_EVENTS + 44
    # Older than everything in a full ring: recorded, seen, and out of the ring at once.
    await append_all(store, [event(999, timestamp_ms=NOW - 1)], 1)
    again = await store.fetch("main", "u1", None, timeout_s=5)
    assert again.item_ids == found.item_ids
    assert hash64("i999") in again.seen


async def test_the_seen_set_is_bounded_and_forgets_what_was_seen_first(open_store) -> None:
    store = await open_store(limits=StoreLimits(seen_items=20, repeat_window_s=0))
    for number in range(57):
        await append_all(store, [event(number)], 1)
        found = await store.fetch("main", "u1", None, timeout_s=5)
        assert sorted(found.seen) == sorted(hash64(f"i{i}") for i in range(max(0, number - 19), number + 1))
    await append_all(store, [event(100, item="i56"), event(101, item="i0")], 2)
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert sorted(found.seen) == sorted(hash64(f"i{i}") for i in [*range(38, 57), 0])


async def test_a_user_and_a_session_are_merged_by_time_in_one_fetch(store: OnlineStore) -> None:
    session = session_owner("s1")
    await append_all(store, [event(1), event(4, item="both"), event(2, owner=session), event(3, session, "both")], 4)
    found = await store.fetch("main", "u1", session, timeout_s=5)
    assert found.item_ids == ("i1", "i2", "both", "both")
    assert sorted(found.seen) == sorted(hash64(i) for i in ("i1", "i2", "both"))
    assert (await store.fetch("main", None, session, timeout_s=5)).item_ids == ("i2", "both")
    assert (await store.fetch("main", "nobody", session, timeout_s=5)).item_ids == ("i2", "both")


async def test_an_unknown_user_is_not_an_error(store: OnlineStore) -> None:
    for owner, session in [("nobody", None), ("nobody", session_owner("none")), (None, None)]:
        found = await store.fetch("main", owner, session, timeout_s=5)
        assert not found.known and len(found) == 0 and len(found.seen) == 0


async def test_impressions_and_searches_leave_a_user_unknown(store: OnlineStore) -> None:
    shown = event(1, type=EventType.impression)
    searched = Event("e2", "u1", EventType.search, NOW)
    await append_all(store, [shown, searched], 2)
    assert not (await store.fetch("main", "u1", None, timeout_s=5)).known


async def test_tenants_do_not_see_each_other(store: OnlineStore) -> None:
    await store.append("one", [event(1)], now_ms=NOW)
    assert await store.append("two", [event(1)], now_ms=NOW) == [EventStatus.accepted]
    assert (await store.fetch("one", "u1", None, timeout_s=5)).item_ids == ("i1",)
    assert not (await store.fetch("three", "u1", None, timeout_s=5)).known


async def test_a_hundred_parallel_appends_to_one_user_lose_nothing(store: OnlineStore) -> None:
    statuses = await asyncio.gather(*(store.append("main", [event(i)], now_ms=NOW) for i in range(100)))
    assert statuses == [[EventStatus.accepted]] * 100
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert found.item_ids == tuple(f"i{i}" for i in range(100))
    assert len(found.seen) == 100
