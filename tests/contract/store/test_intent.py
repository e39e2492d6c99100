"""What an owner searched for last: one vector, the newest by time, for a while, and carried along by a link."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.events import Event, EventType, session_owner
from models.features import UserFeatures
from models.ids import BUCKETS, bucket_of
from models.intent import encoder_tag, pack
from models.store.calls import tag_of
from models.store.memory_streams import MemoryEventStreams
from models.store.port import EventStatus, StoreLimits
from models.store.profiles import Linked, ProfileStore
from models.store.redis_streams import RedisEventStreams
from models.store.streams import Group

NOW = int(time.time() * 1000)
SESSION = session_owner("s1")


def vector(seed: int, dimension: int = 48) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
    return found / np.linalg.norm(found)


def search(number: int, owner: str = "u1", at: int = 0, dimension: int = 48) -> Event:
    packed = pack(vector(number, dimension))
    return Event(f"s{number}", owner, EventType.search, NOW + at, intent=packed)


def click(number: int, owner: str = "u1") -> Event:
    return Event(f"e{number}", owner, EventType.click, NOW + number, f"i{number}")


async def append(store: ProfileStore, *events: Event, now_ms: int = NOW) -> None:
    assert set(await store.append("main", events, now_ms=now_ms)) == {EventStatus.accepted}


async def fetch(store: ProfileStore, owner: str | None = "u1", session: str | None = None) -> UserFeatures:
    return await store.fetch("main", owner, session, timeout_s=5)


def looks_for(user: UserFeatures, number: int, at: int = 0, dimension: int = 48) -> bool:
    if user.intent is None or user.intent.shape != (dimension,) or user.intent.dtype != np.float32:
        return False
    return user.intent_ms == NOW + at and float(user.intent @ vector(number, dimension)) > 0.9999


async def test_a_search_is_there_with_the_next_fetch_and_makes_nobody_known(profiles: ProfileStore) -> None:
    assert (await fetch(profiles)).intent is None
    await append(profiles, search(1))
    found = await fetch(profiles)
    assert looks_for(found, 1) and not found.known and len(found) == 0
    await append(profiles, click(1))
    found = await fetch(profiles)
    assert looks_for(found, 1) and found.known and found.item_ids == ("i1",)
    assert (await fetch(profiles, "u2")).intent is None
    assert (await profiles.fetch("other", "u1", None, timeout_s=5)).intent is None


async def test_the_newest_search_by_time_stays_in_whatever_order_they_come(profiles: ProfileStore) -> None:
    await append(profiles, search(2, at=-500), search(1, at=-900))
    await append(profiles, search(3, at=-800))
    assert looks_for(await fetch(profiles), 2, -500)
    await append(profiles, search(4, at=-500))
    assert looks_for(await fetch(profiles), 4, -500), "of equal times the later to come"


async def test_a_search_without_a_vector_and_a_retry_change_nothing(profiles: ProfileStore) -> None:
    await append(profiles, search(1, at=-9))
    await append(profiles, Event("s2", "u1", EventType.search, NOW))
    assert await profiles.append("main", [replace(search(1), intent=pack(vector(7)))], now_ms=NOW) == ["duplicate"]
    assert looks_for(await fetch(profiles), 1, -9)


async def test_a_date_in_the_future_counts_as_now(profiles: ProfileStore) -> None:
    await append(profiles, search(1, at=200_000))
    assert looks_for(await fetch(profiles), 1, 0)
    await append(profiles, search(2, at=1), now_ms=NOW + 1)
    assert looks_for(await fetch(profiles), 2, 1)


async def test_a_search_ends_after_its_time_and_an_old_one_never_begins(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(intent_s=0.3))
    await append(store, search(1), search(2, "u2", at=-300))
    assert looks_for(await fetch(store), 1) and (await fetch(store, "u2")).intent is None
    await asyncio.sleep(0.35)
    await append(store, click(1, "u3"), now_ms=NOW + 350)
    assert (await fetch(store)).intent is None
    off = await open_profiles(limits=StoreLimits(intent_s=0))
    await append(off, search(3, "u4"))
    assert (await fetch(off, "u4")).intent is None


async def test_of_user_and_session_the_newer_search_counts(profiles: ProfileStore) -> None:
    await append(profiles, search(1, at=-5), search(2, SESSION, at=-3), click(1), click(2, SESSION))
    assert looks_for(await fetch(profiles, "u1", SESSION), 2, -3)
    await append(profiles, search(3, at=-1))
    assert looks_for(await fetch(profiles, "u1", SESSION), 3, -1)
    for user, session in (("nobody", SESSION), (None, SESSION)):
        assert looks_for(await fetch(profiles, user, session), 2, -3)
    only_session = await fetch(profiles, "u1", session_owner("quiet"))
    assert looks_for(only_session, 3, -1)


async def test_a_link_carries_the_newer_search_over_and_forgets_it_in_the_session(profiles: ProfileStore) -> None:
    await append(profiles, search(1, at=-5), search(2, SESSION, at=-3), click(1, SESSION))
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(True, 1)
    assert looks_for(await fetch(profiles), 2, -3)
    assert (await fetch(profiles, None, SESSION)).intent is None
    await append(profiles, search(3, SESSION, at=-4))
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(True, 0), "a search alone is something"
    assert looks_for(await fetch(profiles), 2, -3), "the older one does not win by being linked"
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(False, 0)


async def test_a_search_keeps_the_tag_of_its_encoder_through_a_link_and_one_without_has_none(
    profiles: ProfileStore,
) -> None:
    tag = encoder_tag("hf://a/b@c")
    await append(profiles, search(1, at=-5), replace(search(2, SESSION, at=-3), intent=pack(vector(2), tag)))
    assert (await fetch(profiles)).intent_tag == b""
    found = await fetch(profiles, "u1", SESSION)
    assert looks_for(found, 2, at=-3) and found.intent_tag == tag
    await profiles.link("main", "u1", SESSION, now_ms=NOW)
    found = await fetch(profiles)
    assert looks_for(found, 2, at=-3) and found.intent_tag == tag
    await append(profiles, search(3, at=-1))
    assert (await fetch(profiles)).intent_tag == b""


async def test_another_dimension_replaces_like_any_other(profiles: ProfileStore) -> None:
    await append(profiles, search(1, at=-2))
    await append(profiles, search(2, at=-1, dimension=64))
    assert looks_for(await fetch(profiles), 2, -1, dimension=64)


@pytest.mark.parametrize(
    "bad",
    [
        replace(click(1), intent=pack(vector(1))),
        replace(search(1), intent=b""),
        replace(search(1), intent=b"odd"),
        replace(search(1), intent=bytes(40_000)),
    ],
    ids=["a click", "empty", "odd", "too long"],
)
async def test_what_is_no_intent_is_refused(profiles: ProfileStore, bad: Event) -> None:
    with pytest.raises(ValueError, match="event 1: an intent"):
        await profiles.append("main", [click(0), bad], now_ms=NOW)
    assert not (await fetch(profiles)).known


async def test_a_limited_search_leaves_no_intent(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(events_per_owner_s=1))
    assert await store.append("main", [search(1, at=-2), search(2, at=-1)], now_ms=NOW) == ["accepted", "limited"]
    assert looks_for(await fetch(store), 1, -2)


async def test_streams_do_not_hold_the_vector(fresh) -> None:
    if fresh.kind == "memory":
        streams: Any = MemoryEventStreams(durability="fsync")
    else:
        streams = RedisEventStreams(fresh.servers[0].url, cluster=fresh.kind == "cluster", write_timeout_s=5.0)
    try:
        await streams.append("main", [search(1)], now_ms=NOW)
        (taken,) = await streams.take("main", range(BUCKETS), group=Group.statistics, count=9)
        assert [e.event for e in taken.entries] == [replace(search(1), intent=None)]
    finally:
        await streams.close()


async def test_bytes_that_are_no_intent_are_skipped_counted_and_replaced(fresh, profiles: Any) -> None:
    if fresh.kind == "memory":
        pytest.skip("there are no bytes in memory")
    key = f"{tag_of('main', bucket_of('u1'))}i:u1"
    infinite = b"\x01" + bytes(8) + np.array([np.inf, 1], "<f2").tobytes()
    for number, garbage in enumerate((b"?", b"\x63" + bytes(30), b"\x01" + bytes(9), b"\x01" + bytes(30), infinite)):
        await profiles.ping()
        await profiles._servers.run([(key, ("SET", key, garbage))])
        profiles.skipped_records = 0
        assert (await fetch(profiles)).intent is None and profiles.skipped_records == 1
        if len(garbage) < 9 or garbage[0] == 0x63:
            await append(profiles, search(10 + number))
            assert looks_for(await fetch(profiles), 10 + number)
    assert (await profiles._servers.run([(key, ("SET", key, b"?"))]))[0]
    assert await profiles.link("main", "u2", session_owner("u1"), now_ms=NOW) == Linked(False, 0)
