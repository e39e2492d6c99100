"""What a store leaves out by itself: the same again within moments, and more than one owner may send in a second."""

from __future__ import annotations

import asyncio
import time

import pytest

from models.events import Event, EventType, session_owner
from models.ids import bucket_of
from models.store.port import EventStatus, OnlineStore, StoreLimits

NOW = int(time.time() * 1000)
SECOND = NOW // 1000 * 1000
ACCEPTED, DUPLICATE, REPEAT, LIMITED = (EventStatus(s) for s in ("accepted", "duplicate", "repeat", "limited"))
NEIGHBOURS = [f"u{i}" for i in range(5000) if bucket_of(f"u{i}") == bucket_of("u1")][:2]


def click(number: int, owner: str = "u1", item: str = "i", at: int = 0, **options: object) -> Event:
    fields: dict[str, object] = {"type": EventType.click, "timestamp_ms": NOW + at, **options}
    return Event(f"e{number}", owner, item_id=item, **fields)  # type: ignore[arg-type]


async def append(store: OnlineStore, *events: Event, now_ms: int = NOW, **options: bool) -> list[EventStatus]:
    return await store.append("main", events, now_ms=now_ms, **options)


async def ring(store: OnlineStore, owner: str = "u1") -> list[int]:
    return [int(t) - NOW for t in (await store.fetch("main", owner, None, timeout_s=5)).timestamps_ms]


async def test_the_same_again_within_the_window_is_a_repeat_that_changes_nothing(store: OnlineStore) -> None:
    assert await append(store, click(1), click(2, at=1999)) == [ACCEPTED, REPEAT]
    assert await append(store, click(3, at=-2000)) == [REPEAT], "before or after makes no difference"
    assert await ring(store) == [0]
    # Remembered, so that a retry is a duplicate even when the window has passed.
    assert await append(store, click(2, at=9000)) == [DUPLICATE]
    assert await append(store, click(4, at=2001)) == [ACCEPTED], "measured from the event that was taken"
    assert await ring(store) == [0, 2001]


async def test_only_the_newest_event_and_only_all_of_it_makes_a_repeat(store: OnlineStore) -> None:
    others = [
        click(2, item="i2"),
        click(3, at=1),
        click(4, at=2, type=EventType.like),
        click(5, at=3, value=3.0),
        click(6, at=4, value=5.0),
        click(7, "u2", at=4),
        click(8, session_owner("u1"), at=4),
    ]
    assert await append(store, click(1), *others) == [ACCEPTED] * 8
    assert await append(store, click(9, at=5, value=5.0)) == [REPEAT]


async def test_what_was_only_shown_or_looked_for_is_never_a_repeat(store: OnlineStore) -> None:
    shown = [click(n, at=n, type=EventType.impression) for n in (1, 2)]
    looked = [Event(f"s{n}", "u1", EventType.search, NOW) for n in (1, 2)]
    assert await append(store, *shown, *looked) == [ACCEPTED] * 4


async def test_repeats_do_not_reach_the_stream(open_store) -> None:
    store = await open_store(limits=StoreLimits(repeat_window_s=0.5))
    assert await append(store, click(1), click(2, at=500), click(3, at=501)) == [ACCEPTED, REPEAT, ACCEPTED]
    off = await open_store(limits=StoreLimits(repeat_window_s=0))
    assert await append(off, click(4, "u9"), click(5, "u9")) == [ACCEPTED, ACCEPTED]


async def test_an_owner_has_so_many_events_a_second_and_a_retry_in_the_next_one_lands(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=5))
    events = [click(n, item=f"i{n}", at=n) for n in range(8)]
    first = await append(store, *events, now_ms=SECOND)
    assert first == [ACCEPTED] * 5 + [LIMITED] * 3
    assert await append(store, *events, now_ms=SECOND + 999) == [DUPLICATE] * 5 + [LIMITED] * 3
    assert await ring(store) == [0, 1, 2, 3, 4]
    assert await append(store, *events, now_ms=SECOND + 1000) == [DUPLICATE] * 5 + [ACCEPTED] * 3
    assert await ring(store) == list(range(8))


async def test_other_owners_of_the_bucket_and_of_the_call_are_not_touched(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=3))
    flood = [click(n, NEIGHBOURS[0], f"i{n}") for n in range(10)]
    calm = [click(n, owner, f"i{n}") for owner in (NEIGHBOURS[1], "far", session_owner(NEIGHBOURS[0])) for n in (0, 1)]
    statuses = await append(store, *flood[:5], *calm, *flood[5:], now_ms=SECOND)
    assert [statuses[i] for i in range(5, 5 + len(calm))] == [ACCEPTED] * len(calm)
    assert statuses.count(ACCEPTED) == len(calm) + 3 and statuses.count(LIMITED) == 7


async def test_repeats_shown_items_and_searches_count_and_duplicates_do_not(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=4))
    taken = [click(1), click(2), click(3, type=EventType.impression), Event("s", "u1", EventType.search, NOW)]
    assert await append(store, click(1), click(1), now_ms=SECOND) == [ACCEPTED, DUPLICATE]
    assert await append(store, *taken, now_ms=SECOND) == [DUPLICATE, REPEAT, ACCEPTED, ACCEPTED]
    assert await append(store, click(9, item="i9"), now_ms=SECOND) == [LIMITED]


async def test_a_clock_that_is_behind_makes_no_second_allowance(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=2))
    events = [click(n, item=f"i{n}") for n in range(6)]
    assert await append(store, *events[:2], now_ms=SECOND + 1000) == [ACCEPTED] * 2
    assert await append(store, *events[2:4], now_ms=SECOND) == [LIMITED] * 2
    assert await append(store, *events[2:4], now_ms=SECOND + 1500) == [LIMITED] * 2


async def test_history_is_neither_a_repeat_nor_limited_and_a_backlog_is_not_limited(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=2))
    events = [click(n) for n in range(5)]
    assert await append(store, *events, to_stream=False) == [ACCEPTED] * 5
    late = [click(10 + n, "u2", f"i{n}") for n in range(5)]
    assert await append(store, *late, click(20, "u2", "i4"), backlog=True) == [ACCEPTED] * 5 + [REPEAT]
    # Neither uses up what is allowed.
    assert await append(store, click(30, "u2", "i30"), now_ms=NOW) == [ACCEPTED]


async def test_racing_calls_share_one_allowance(open_store) -> None:
    store = await open_store(limits=StoreLimits(events_per_owner_s=30))
    calls = [append(store, *(click(10 * c + n, item=f"i{c}-{n}") for n in range(10)), now_ms=NOW) for c in range(10)]
    statuses = [s for reply in await asyncio.gather(*calls) for s in reply]
    assert (statuses.count(ACCEPTED), statuses.count(LIMITED)) == (30, 70)


async def test_what_counts_a_second_is_gone_soon(fresh, open_store) -> None:
    if fresh.kind == "memory":
        pytest.skip("memory forgets it with the next second")
    import redis

    store = await open_store()
    await append(store, click(1))
    lives = []
    for server in fresh.servers:
        with redis.Redis.from_url(server.url) as client:
            lives += [client.pttl(key) for key in client.keys("*}w:*")]
    assert len(lives) == 1 and 0 < lives[0] <= 5000
