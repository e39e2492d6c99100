"""Merging a session into a user: the same on every store, harmless to repeat, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.events import Event, EventType, session_owner
from models.features import UserFeatures
from models.ids import bucket_of, hash64
from models.store.calls import tag_of
from models.store.port import EventStatus, StoreLimits, StoreUnavailable
from models.store.profiles import Linked, MemoryProfiles, ProfileStore, RedisProfiles
from models.store.redis_store import RedisStore

NOW = int(time.time() * 1000)
SESSION = session_owner("s1")
AS_IT_CAME = StoreLimits(repeat_window_s=0)
"""For logs in which the same comes twice."""


def event(number: int, owner: str, item: str | None = None, **options: Any) -> Event:
    fields = {"type": EventType.click, "timestamp_ms": NOW + number, **options}
    return Event(f"e{number}", owner, item_id=item or f"i{number}", **fields)


async def link(store: ProfileStore, user: str = "u1", session: str = SESSION) -> Linked:
    return await store.link("main", user, session, now_ms=NOW)


async def fetch(store: ProfileStore, owner: str | None, session: str | None = None) -> UserFeatures:
    return await store.fetch("main", owner, session, timeout_s=5)


async def append(store: ProfileStore, *events: Event) -> None:
    assert set(await store.append("main", events, now_ms=NOW)) <= {EventStatus.accepted}


def test_the_session_and_the_user_of_these_tests_live_in_different_buckets() -> None:
    assert bucket_of("u1") != bucket_of(SESSION)


async def test_a_linked_session_is_what_the_user_and_the_session_were_together(open_profiles) -> None:
    profiles = await open_profiles(limits=AS_IT_CAME)
    rng = np.random.default_rng(5)
    times = rng.integers(0, 60, 150)
    kinds = [EventType.click, EventType.hide, EventType.rating]
    await append(
        profiles,
        *(
            event(n, ("u1", SESSION)[n % 2], f"i{rng.integers(90)}", timestamp_ms=NOW + int(t), type=kinds[n % 3])
            for n, t in enumerate(times)
        ),
    )
    together = await fetch(profiles, "u1", SESSION)
    assert await link(profiles) == Linked(known=True, events=75)
    found = await fetch(profiles, "u1")
    assert found.item_ids == together.item_ids
    for column in ("types", "values", "timestamps_ms", "seen"):
        np.testing.assert_array_equal(getattr(found, column), getattr(together, column))
    assert not (await fetch(profiles, None, SESSION)).known


async def test_linking_again_changes_nothing(profiles: ProfileStore) -> None:
    await append(profiles, event(1, SESSION), event(2, SESSION), event(3, "u1"))
    assert await link(profiles) == Linked(True, 2)
    before = await fetch(profiles, "u1")
    assert await link(profiles) == Linked(False, 0)
    assert (await fetch(profiles, "u1")).item_ids == before.item_ids == ("i1", "i2", "i3")


async def test_a_link_that_was_cut_off_before_the_session_was_forgotten_can_be_repeated(open_profiles) -> None:
    profiles = await open_profiles(limits=AS_IT_CAME)
    twice = [event(n, SESSION, "same", timestamp_ms=NOW + 5) for n in (1, 2)]
    first = [*twice, event(3, SESSION), event(4, SESSION, "i3")]
    await append(profiles, *first, event(9, "u1", "own", timestamp_ms=NOW + 5))
    assert await link(profiles) == Linked(True, 4)
    # The same events under other ids: the state that a crash between the two steps leaves, plus one new event.
    again = [replace(e, event_id=f"again-{e.event_id}") for e in first]
    await append(profiles, *again, event(20, SESSION))
    assert await link(profiles) == Linked(True, 1)
    found = await fetch(profiles, "u1")
    assert found.item_ids == ("i3", "i3", "own", "same", "same", "i20")


async def test_an_unknown_session_is_not_an_error_and_leaves_the_user_alone(profiles: ProfileStore) -> None:
    assert await link(profiles) == Linked(False, 0)
    assert not (await fetch(profiles, "u1")).known
    await append(profiles, event(1, "u1"))
    assert await link(profiles, session=session_owner("nobody")) == Linked(False, 0)
    assert (await fetch(profiles, "u1")).item_ids == ("i1",)


async def test_an_unknown_user_becomes_known_and_stays_when_sessions_have_expired(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(session_s=0.3))
    await append(store, event(1, SESSION), event(2, SESSION))
    assert await link(store) == Linked(True, 2)
    await asyncio.sleep(0.4)
    await store.append("main", [event(3, session_owner("other"))], now_ms=NOW + 1_000)
    assert (await fetch(store, "u1")).item_ids == ("i1", "i2")


async def test_an_expired_session_is_unknown(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(session_s=0.05))
    await append(store, event(1, SESSION))
    await asyncio.sleep(0.1)
    assert await store.link("main", "u1", SESSION, now_ms=NOW + 100) == Linked(False, 0)


async def test_ring_and_seen_set_stay_within_their_bounds(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(recent_events=8, seen_items=20))
    await append(store, *(event(n, "u1") for n in range(0, 30, 2)), *(event(n, SESSION) for n in range(1, 30, 2)))
    assert (await link(store)).events == 8
    found = await fetch(store, "u1")
    assert found.item_ids == tuple(f"i{n}" for n in range(22, 30))
    # Fifteen of each: of the user's, those seen first went.
    expected = [*range(10, 30, 2), *range(1, 30, 2)]
    assert len(found.seen) == 20
    assert sorted(found.seen) == sorted(hash64(f"i{n}") for n in expected[-20:])


async def test_seen_sets_merge_the_same_way_on_every_store(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(seen_items=40, repeat_window_s=0))
    rng = np.random.default_rng(11)
    model: dict[str, dict[str, None]] = {"u1": {}, SESSION: {}}
    for n in range(260):
        owner, item = ("u1", SESSION)[int(rng.integers(2))], f"i{rng.integers(70)}"
        await append(store, event(n, owner, item))
        model[owner].setdefault(item)
        if len(model[owner]) > 40:
            del model[owner][next(iter(model[owner]))]
    await link(store)
    for item in model[SESSION]:
        model["u1"].setdefault(item)
        if len(model["u1"]) > 40:
            del model["u1"][next(iter(model["u1"]))]
    assert sorted((await fetch(store, "u1")).seen) == sorted(hash64(i) for i in model["u1"])
    # And what comes after finds it in order.
    await append(store, event(999, "u1", "new"))
    del model["u1"][next(iter(model["u1"]))]
    assert sorted((await fetch(store, "u1")).seen) == sorted(hash64(i) for i in (*model["u1"], "new"))


async def test_events_that_arrive_while_a_session_is_linked_are_not_lost(profiles: ProfileStore) -> None:
    async def write() -> None:
        for n in range(60):
            await append(profiles, event(n, SESSION))

    async def links() -> None:
        for _ in range(20):
            await link(profiles)

    await asyncio.gather(write(), links())
    await link(profiles)
    found = await fetch(profiles, "u1", SESSION)
    assert found.item_ids == tuple(f"i{n}" for n in range(60)) and len(found.seen) == 60


async def test_two_links_at_once_take_every_event_once(profiles: ProfileStore) -> None:
    await append(profiles, *(event(n, SESSION) for n in range(40)))
    done = await asyncio.gather(*(link(profiles) for _ in range(8)))
    assert sum(d.events for d in done) == 40
    assert (await fetch(profiles, "u1")).item_ids == tuple(f"i{n}" for n in range(40))


async def test_the_streams_are_not_told_twice(fresh, profiles: ProfileStore) -> None:
    await append(profiles, event(1, SESSION))
    await link(profiles)
    if isinstance(profiles, MemoryProfiles):
        assert sum(len(s) for s in profiles._tenants["main"].streams.values()) == 1
    else:
        import redis

        found = 0
        for server in fresh.servers:
            with redis.Redis.from_url(server.url) as client:
                found += sum(client.xlen(key) for key in client.keys("*}ev"))
        assert found == 1


async def test_tenants_do_not_share_sessions(profiles: ProfileStore) -> None:
    await append(profiles, event(1, SESSION))
    assert await profiles.link("other", "u1", SESSION, now_ms=NOW) == Linked(False, 0)
    assert (await fetch(profiles, None, SESSION)).item_ids == ("i1",)


@pytest.mark.parametrize(
    ("owner", "session"),
    [
        ("", SESSION),
        ("a b", SESSION),
        (SESSION, SESSION),
        ("u1", "u1"),
        ("u1", "~s:"),
        ("u1", "~s:a\n"),
        ("u\0", SESSION),
    ],
)
async def test_what_is_no_user_or_no_session_is_refused_before_anything_happens(
    profiles: ProfileStore, owner: str, session: str
) -> None:
    await append(profiles, event(1, SESSION))
    with pytest.raises(ValueError, match="not a valid"):
        await link(profiles, owner, session)
    assert (await fetch(profiles, None, SESSION)).item_ids == ("i1",)


async def test_a_link_is_refused_where_it_could_be_lost(start_server) -> None:
    server = start_server(extra=["appendonly no"])
    store = RedisProfiles(server.url, write_timeout_s=5.0)
    loose = RedisStore(server.url, write_timeout_s=5.0, require_durable=False)
    await loose.append("main", [event(1, SESSION)], now_ms=NOW)
    with pytest.raises(StoreUnavailable, match="appendfsync always"):
        await link(store)
    assert (await loose.fetch("main", None, SESSION, timeout_s=5)).item_ids == ("i1",)
    await store.close()
    await loose.close()


async def test_a_full_session_and_a_full_user_merge_in_milliseconds(start_server) -> None:
    import redis

    server = start_server()
    store = RedisProfiles(server.url, write_timeout_s=5.0)
    with redis.Redis.from_url(server.url) as client:
        for owner, seed in (("u1", 1), (SESSION, 2)):
            hashes = np.random.default_rng(seed).bytes(8 * 20_000)
            client.set(f"{tag_of('main', bucket_of(owner))}s:{owner}", b"\1seen\0\0\0" + hashes)
            await append(store, *(event(seed * 1000 + n, owner) for n in range(256)))
    started = time.perf_counter()
    assert await link(store) == Linked(True, 256)
    spent = time.perf_counter() - started
    assert len((await fetch(store, "u1")).seen) == 20_000
    # Tens of ms; the server stands still meanwhile, so no hash may be searched for in the whole set.
    assert spent < 1.0, f"{spent:.3f} s"
    await store.close()
