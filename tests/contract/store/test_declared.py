"""What an owner declares of themselves: kept whole, replaced whole, durable, and carried along by a link."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.declared import Declaration, pack
from models.events import Event, EventType, session_owner
from models.features import UserFeatures
from models.ids import bucket_of
from models.intent import encoder_tag
from models.intent import pack as pack_vector
from models.store.calls import OWNER_KEYS, tag_of
from models.store.port import EventStatus, StoreLimits, StoreUnavailable
from models.store.profiles import Linked, ProfileStore

NOW = int(time.time() * 1000)
SESSION = session_owner("s1")


def said(number: int, at: int = 0, *, vector: bool = True) -> Declaration:
    labels = (("genres", f"Genre {number} \N{SNOWMAN}"), ("genres", "Drama"), ("occupation", "none"))
    found = np.random.default_rng(number).normal(size=48).astype(np.float32)
    return Declaration(labels, found / np.linalg.norm(found) if vector else None, NOW + at)


def click(number: int, owner: str = "u1") -> Event:
    return Event(f"e{number}", owner, EventType.click, NOW + number, f"i{number}")


async def declare(store: ProfileStore, owner: str, what: Declaration, tenant: str = "main") -> None:
    await store.declare(tenant, owner, what, now_ms=NOW)


async def append(store: ProfileStore, *events: Event) -> None:
    assert set(await store.append("main", events, now_ms=NOW)) == {EventStatus.accepted}


async def fetch(store: ProfileStore, owner: str | None = "u1", session: str | None = None) -> UserFeatures:
    return await store.fetch("main", owner, session, timeout_s=5)


def says(user: UserFeatures, wanted: Declaration) -> bool:
    found = user.declared
    if found is None or (found.labels, found.declared_ms) != (wanted.labels, wanted.declared_ms):
        return False
    if found.vector is None or wanted.vector is None:
        return found.vector is wanted.vector
    return float(found.vector @ wanted.vector) > 0.9999


async def test_a_declaration_is_there_with_the_next_fetch_and_makes_nobody_known(profiles: ProfileStore) -> None:
    assert (await fetch(profiles)).declared is None
    await declare(profiles, "u1", said(1))
    found = await fetch(profiles)
    assert says(found, said(1)) and not found.known and len(found) == 0
    await append(profiles, click(1))
    found = await fetch(profiles)
    assert says(found, said(1)) and found.known and found.item_ids == ("i1",)
    assert (await fetch(profiles, "u2")).declared is None
    assert (await profiles.fetch("other", "u1", None, timeout_s=5)).declared is None


async def test_a_declaration_replaces_the_one_before_and_an_empty_one_takes_it_back(profiles: ProfileStore) -> None:
    await append(profiles, click(1))
    for what in (said(1), said(1), said(2, vector=False), Declaration((), said(3).vector, NOW)):
        await declare(profiles, "u1", what)
        assert says(await fetch(profiles), what)
    for _ in range(2):
        await declare(profiles, "u1", Declaration())
        # A server lets go of it within a millisecond, and until then it reads as nothing.
        assert (await fetch(profiles)).declared is None
    assert (await fetch(profiles)).item_ids == ("i1",)


async def test_of_user_and_session_the_later_declaration_counts(profiles: ProfileStore) -> None:
    await declare(profiles, "u1", said(1, at=-5))
    await declare(profiles, SESSION, said(2, at=-3))
    await append(profiles, click(1), click(2, SESSION))
    assert says(await fetch(profiles, "u1", SESSION), said(2, at=-3))
    await declare(profiles, "u1", said(3, at=-1))
    assert says(await fetch(profiles, "u1", SESSION), said(3, at=-1))
    for user, session in (("nobody", SESSION), (None, SESSION)):
        assert says(await fetch(profiles, user, session), said(2, at=-3))
    assert says(await fetch(profiles, "u1", session_owner("quiet")), said(3, at=-1))


async def test_a_link_carries_the_later_declaration_over_and_forgets_it_in_the_session(profiles: ProfileStore) -> None:
    await declare(profiles, SESSION, said(1, at=-9))
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(True, 0), "a declaration is something"
    assert says(await fetch(profiles), said(1, at=-9))
    assert (await fetch(profiles, None, SESSION)).declared is None
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(False, 0)
    await declare(profiles, SESSION, said(2, at=-10))
    await append(profiles, click(1, SESSION))
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(True, 1)
    assert says(await fetch(profiles), said(1, at=-9)), "the older one does not win by being linked"
    await append(profiles, click(2, SESSION))
    assert await profiles.link("main", "u1", SESSION, now_ms=NOW) == Linked(True, 1)
    assert says(await fetch(profiles), said(1, at=-9)), "a session that declared nothing takes nothing away"
    await declare(profiles, SESSION, said(3, at=-1))
    await profiles.link("main", "u1", SESSION, now_ms=NOW)
    assert says(await fetch(profiles), said(3, at=-1))


async def test_a_declaration_keeps_the_tag_of_its_encoder_through_a_link(profiles: ProfileStore) -> None:
    tagged = replace(said(1), tag=encoder_tag("hf://a/b@c"))
    await declare(profiles, SESSION, tagged)
    await declare(profiles, "u2", said(2))
    await profiles.link("main", "u1", SESSION, now_ms=NOW)
    ours, theirs = (await fetch(profiles)).declared, (await fetch(profiles, "u2")).declared
    assert ours is not None and theirs is not None and says(await fetch(profiles), tagged)
    assert ours.tag == tagged.tag and theirs.tag == b""


async def test_a_session_s_declaration_lives_as_long_as_its_last_event_and_a_user_s_for_ever(open_profiles) -> None:
    store = await open_profiles(limits=StoreLimits(session_s=1.5))
    await declare(store, SESSION, said(1))
    await declare(store, "u1", said(2))
    await _pass(store, 1000)
    await store.append("main", [click(1, SESSION)], now_ms=NOW + 1000)
    await _pass(store, 1800)
    assert says(await fetch(store, None, SESSION), said(1))
    await _pass(store, 3000)
    assert (await fetch(store, None, SESSION)).declared is None
    assert says(await fetch(store), said(2))


_BEGAN: dict[int, float] = {}


async def _pass(store: ProfileStore, after_ms: int) -> None:
    """Let time pass for a server, which has its own clock, and for memory, whose time is what it was told."""
    import asyncio

    began = _BEGAN.setdefault(id(store), time.monotonic())
    await asyncio.sleep(max(0.0, began + after_ms / 1000 - time.monotonic()))
    await store.append("main", [click(after_ms, "clock")], now_ms=NOW + after_ms)


@pytest.mark.parametrize("owner", ["", "no spaces", SESSION + "/..", "x" * 129])
async def test_an_owner_that_is_none_is_refused(profiles: ProfileStore, owner: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        await declare(profiles, owner, said(1))
    with pytest.raises(ValueError, match="tenant"):
        await declare(profiles, "u1", said(1), tenant="no spaces")


async def test_a_store_that_cannot_promise_durability_takes_no_declaration(fresh, open_profiles) -> None:
    if fresh.kind != "memory":
        pytest.skip("these servers are durable; test_durability weakens servers of its own")
    store = await open_profiles(durability="none", require_durable=True)
    with pytest.raises(StoreUnavailable):
        await declare(store, "u1", said(1))
    assert (await fetch(store)).declared is None


async def test_its_key_is_listed_with_the_owner_s_other_keys(fresh, profiles: Any) -> None:
    if fresh.kind == "memory":
        pytest.skip("there are no keys in memory")
    await declare(profiles, "u1", said(1))
    await append(profiles, click(1), Event("s1", "u1", EventType.search, NOW, intent=pack_vector(said(1).vector)))
    tag = tag_of("main", bucket_of("u1"))
    for part in OWNER_KEYS:
        assert (await profiles._servers.run([(tag, ("EXISTS", f"{tag}{part}u1"))]))[0] == 1, part


async def test_bytes_that_are_no_declaration_are_skipped_counted_and_replaced(fresh, profiles: Any) -> None:
    if fresh.kind == "memory":
        pytest.skip("there are no bytes in memory")
    key = f"{tag_of('main', bucket_of('u1'))}a:u1"
    good = pack(said(1))
    for garbage in (b"?", b"\x63" + good[1:], good[:20], good + b"x", good[:9] + b"\xff" * 4 + good[13:]):
        await profiles.ping()
        await profiles._servers.run([(key, ("SET", key, garbage))])
        profiles.skipped_records = 0
        assert (await fetch(profiles)).declared is None and profiles.skipped_records == 1
        await declare(profiles, "u1", said(2))
        assert says(await fetch(profiles), said(2))
    await profiles._servers.run([(key, ("SET", key, b"?"))])
    await declare(profiles, SESSION, said(3))
    await profiles.link("main", "u1", SESSION, now_ms=NOW)
    assert says(await fetch(profiles), said(3)), "what cannot be read does not keep a link from its work"
