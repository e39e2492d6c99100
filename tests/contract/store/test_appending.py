"""What `append` promises: status per event, nothing twice, nothing it cannot keep."""

from __future__ import annotations

import asyncio
import time

import pytest

from models.events import Event, EventType, session_owner
from models.ids import bucket_of
from models.store.memory import MemoryStore
from models.store.port import EventStatus, OnlineStore, StoreLimits, StoreUnavailable

NOW = int(time.time() * 1000)


def click(number: int, owner: str = "u1") -> Event:
    return Event(f"e{number}", owner, EventType.click, NOW + number, f"i{number}")


async def test_an_event_sent_again_is_a_duplicate_and_changes_nothing(store: OnlineStore) -> None:
    first = await store.append("main", [click(1), click(2)], now_ms=NOW)
    again = await store.append("main", [click(2), click(3), click(3)], now_ms=NOW)
    assert first == [EventStatus.accepted] * 2
    assert again == [EventStatus.duplicate, EventStatus.accepted, EventStatus.duplicate]
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i1", "i2", "i3")


async def test_event_ids_of_different_users_never_collide(store: OnlineStore) -> None:
    # Two owners of one bucket: the likeliest place for a collision.
    owners = [f"u{i}" for i in range(2000) if bucket_of(f"u{i}") == bucket_of("u1")][:2]
    statuses = await store.append("main", [click(1, owner) for owner in owners], now_ms=NOW)
    assert statuses == [EventStatus.accepted] * 2


async def test_racing_retries_of_one_event_are_accepted_once(store: OnlineStore) -> None:
    statuses = await asyncio.gather(*(store.append("main", [click(1)], now_ms=NOW) for _ in range(20)))
    assert sorted(s for (s,) in statuses) == [EventStatus.accepted] + [EventStatus.duplicate] * 19


async def test_an_event_id_is_forgotten_after_the_window(open_store) -> None:
    store = await open_store(limits=StoreLimits(dedupe_s=0.2, repeat_window_s=0))
    assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]
    assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.duplicate]
    await asyncio.sleep(0.25)
    assert await store.append("main", [click(1)], now_ms=NOW + 250) == [EventStatus.accepted]


async def test_a_session_expires_and_a_user_does_not(open_store) -> None:
    store = await open_store(limits=StoreLimits(session_s=0.2))
    session = session_owner("s1")
    await store.append("main", [click(1), click(2, session)], now_ms=NOW)
    assert (await store.fetch("main", "u1", session, timeout_s=5)).item_ids == ("i1", "i2")
    await asyncio.sleep(0.25)
    await store.append("main", [click(3)], now_ms=NOW + 250)
    assert (await store.fetch("main", "u1", session, timeout_s=5)).item_ids == ("i1", "i3")


async def test_five_hundred_events_of_many_users_keep_their_order(store: OnlineStore) -> None:
    events = [click(i, f"u{i % 90}") for i in range(500)]
    events[250] = events[0]
    statuses = await store.append("main", events, now_ms=NOW)
    assert statuses[250] == EventStatus.duplicate
    assert all(s == EventStatus.accepted for i, s in enumerate(statuses) if i != 250)
    for user in range(90):
        found = await store.fetch("main", f"u{user}", None, timeout_s=5)
        assert found.item_ids == tuple(f"i{i}" for i in range(user, 500, 90) if i != 250)


async def test_the_longest_session_id_is_an_owner(store: OnlineStore) -> None:
    owner = session_owner("s" * 128)
    assert await store.append("main", [click(1, owner)], now_ms=NOW) == [EventStatus.accepted]
    assert (await store.fetch("main", None, owner, timeout_s=5)).known


@pytest.mark.parametrize(
    "events",
    [
        [click(i) for i in range(501)],
        [Event("e1", "u1", EventType.click, NOW)],
        [Event("e1", "u}1", EventType.click, NOW, "i1")],
        [Event("e 1", "u1", EventType.click, NOW, "i1")],
        [Event("e1", "u1", EventType.click, NOW, "i\x001")],
        [Event("e1", "u1", EventType.click, -1, "i1")],
    ],
    ids=["too many", "no item", "owner", "event id", "item id", "time"],
)
async def test_what_cannot_be_stored_is_refused_whole(store: OnlineStore, events: list[Event]) -> None:
    with pytest.raises(ValueError):
        await store.append("main", [click(0, "u2"), *events[:-1], events[-1]], now_ms=NOW)
    assert not (await store.fetch("main", "u2", None, timeout_s=5)).known


async def test_an_invalid_tenant_is_refused_everywhere(store: OnlineStore) -> None:
    with pytest.raises(ValueError):
        await store.append("a}b", [click(1)], now_ms=NOW)
    with pytest.raises(ValueError):
        await store.fetch("a}b", "u1", None, timeout_s=5)
    with pytest.raises(ValueError):
        await store.read_release("")


async def test_nothing_is_stored_for_no_events(store: OnlineStore) -> None:
    assert await store.append("main", [], now_ms=NOW) == []


async def test_a_durable_store_says_so(store: OnlineStore) -> None:
    await store.ping()
    assert await store.durability() == "fsync"


async def test_the_release_pointer_moves_only_from_the_expected_epoch(store: OnlineStore) -> None:
    assert await store.read_release("main") == (None, 0)
    assert await store.move_release("main", '{"é": 1}', expected_epoch=0)
    assert not await store.move_release("main", "{}", expected_epoch=0)
    assert await store.read_release("main") == ('{"é": 1}', 1)
    assert await store.read_release("other") == (None, 0)


async def test_of_racing_publishers_one_wins_each_epoch(open_store) -> None:
    store = await open_store()
    for epoch in range(5):
        moves = [store.move_release("main", f"{epoch}-{i}", expected_epoch=epoch) for i in range(10)]
        won = await asyncio.gather(*moves)
        assert won.count(True) == 1
        assert await store.read_release("main") == (f"{epoch}-{won.index(True)}", epoch + 1)


async def test_memory_refuses_events_it_could_lose_when_durable_ones_are_required() -> None:
    with pytest.raises(StoreUnavailable, match="require_durable=False"):
        await MemoryStore(require_durable=True).append("main", [click(1)], now_ms=NOW)
