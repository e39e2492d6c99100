"""The item log: numbered, in order, durable, bounded; the same on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest

from models.intent import encoder_tag
from models.items.change import ItemChange
from models.items.log import ItemLog, ItemLogFull, MemoryItemLog, RedisItemLog
from models.store.port import StoreError


@pytest.fixture
async def log(fresh) -> AsyncIterator[ItemLog]:
    limit = 40
    opened: ItemLog = (
        MemoryItemLog(limit=limit)
        if fresh.kind == "memory"
        # Patient, as in the tests of the streams: what is asked here is order, on a machine that may be busy.
        else RedisItemLog(
            fresh.servers[0].url,
            cluster=fresh.kind == "cluster",
            limit=limit,
            connections=32,
            write_timeout_s=5.0,
            connect_timeout_s=2.0,
        )
    )
    yield opened
    await opened.close()


def change(name: str) -> ItemChange:
    return ItemChange("put", name, 1, name, vector=np.full(4, 0.5, np.float32))


async def test_changes_are_numbered_from_one_and_read_in_order(log: ItemLog) -> None:
    numbers = [await log.append_item("main", change(f"i{n}")) for n in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    found = await log.read_items("main", after=0)
    assert [n for n, _ in found] == numbers
    assert [c.item_id for _, c in found if c] == [f"i{n}" for n in range(5)]
    assert found[0][1] is not None
    np.testing.assert_array_equal(found[0][1].vector, np.full(4, 0.5, np.float32))
    assert [n for n, _ in await log.read_items("main", after=2, limit=2)] == [3, 4]
    assert not await log.read_items("main", after=5)


async def test_a_change_keeps_the_tag_of_its_encoder_and_one_without_has_none(log: ItemLog) -> None:
    for tag in (encoder_tag("hf://a/b@c"), b""):
        await log.append_item("main", replace(change("a"), tag=tag))
    found = [c for _, c in await log.read_items("main", after=0) if c is not None]
    assert [c.tag for c in found] == [encoder_tag("hf://a/b@c"), b""]
    assert b"tag" not in found[1].to_bytes()[0], "what has none is written as it always was"


async def test_tenants_do_not_see_each_others_items(log: ItemLog) -> None:
    await log.append_item("main", change("a"))
    assert not await log.read_items("other", after=0)
    assert await log.append_item("other", change("b")) == 1


async def test_changes_appended_at_once_all_get_a_number_of_their_own(log: ItemLog) -> None:
    numbers = await asyncio.gather(*(log.append_item("main", change(f"i{n}")) for n in range(30)))
    assert sorted(numbers) == list(range(1, 31))
    assert len(await log.read_items("main", after=0)) == 30


async def test_a_full_log_refuses_and_keeps_what_it_has(log: ItemLog) -> None:
    for n in range(40):
        await log.append_item("main", change(f"i{n}"))
    with pytest.raises(ItemLogFull, match="build and publish a release"):
        await log.append_item("main", change("one too many"[:3]))
    assert len(await log.read_items("main", after=0)) == 40


async def test_a_store_that_is_away_is_an_error_not_a_number(fresh, start_server) -> None:
    if fresh.kind == "memory":
        pytest.skip("memory is never away")
    server = start_server()
    log = RedisItemLog(server.url)
    assert await log.append_item("main", change("a")) == 1
    server.stop()
    with pytest.raises(StoreError):
        await log.append_item("main", change("b"))
    await log.close()
