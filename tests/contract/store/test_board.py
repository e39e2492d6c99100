"""The release board: one proposal at a time, and what replicas said of late; the same on every store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from models.items.change import ItemChange
from models.items.log import ItemLog, MemoryItemLog, RedisItemLog
from models.releases import Release
from models.store.board import MemoryBoard, RedisBoard, ReleaseBoard, Standing

ONE, TWO = Release({"catalog": "catalog/1"}), Release({"catalog": "catalog/2"})


@pytest.fixture
async def board(fresh) -> AsyncIterator[ReleaseBoard]:
    opened: ReleaseBoard = (
        MemoryBoard() if fresh.kind == "memory" else RedisBoard(fresh.servers[0].url, cluster=fresh.kind == "cluster")
    )
    yield opened
    await opened.close()


@pytest.fixture
async def log(fresh) -> AsyncIterator[ItemLog]:
    opened: ItemLog = (
        MemoryItemLog()
        if fresh.kind == "memory"
        else RedisItemLog(fresh.servers[0].url, cluster=fresh.kind == "cluster")
    )
    yield opened
    await opened.close()


async def test_one_publisher_proposes_and_another_is_told_which(board: ReleaseBoard) -> None:
    assert await board.proposal("main") is None
    assert await board.propose("main", ONE, publisher="a", ttl_s=30) is None
    assert await board.propose("main", TWO, publisher="b", ttl_s=30) == ONE.release_id
    assert await board.proposal("main") == ONE.to_json()


async def test_the_same_release_is_taken_over_and_only_its_publisher_withdraws(board: ReleaseBoard) -> None:
    await board.propose("main", ONE, publisher="killed", ttl_s=30)
    assert await board.propose("main", ONE, publisher="next", ttl_s=30) is None
    await board.withdraw("main", publisher="killed")
    assert await board.proposal("main") is not None
    await board.withdraw("main", publisher="next")
    assert await board.proposal("main") is None


async def test_a_proposal_of_a_publisher_that_died_runs_out(board: ReleaseBoard) -> None:
    await board.propose("main", ONE, publisher="killed", ttl_s=0.05)
    await asyncio.sleep(0.15)
    assert await board.proposal("main") is None
    assert await board.propose("main", TWO, publisher="b", ttl_s=30) is None


async def test_replicas_are_known_by_what_they_said_last_and_forgotten_when_silent(board: ReleaseBoard) -> None:
    await board.report("main", Standing("r2", ("r-1",)))
    await board.report("main", Standing("r1", ("r-1",)))
    last = Standing("r1", ("r-2", "r-1"), refused="r-3", reason="index/9: index.faiss is truncated: so it is")
    await board.report("main", last)
    assert await board.standings("main", max_age_s=30) == [last, Standing("r2", ("r-1",))]
    assert await board.standings("other", max_age_s=30) == []
    await asyncio.sleep(0.15)
    await board.report("main", Standing("r2", ("r-2",)))
    assert await board.standings("main", max_age_s=0.1) == [Standing("r2", ("r-2",))]


async def test_a_log_that_was_cut_goes_on_counting(log: ItemLog) -> None:
    for name in ("a", "b", "c"):
        await log.append_item("main", ItemChange("put", name, 1, name))
    await log.trim_items("main", up_to=2)
    assert [n for n, _ in await log.read_items("main", after=0)] == [3]
    assert await log.append_item("main", ItemChange("put", "d", 1, "d")) == 4
    assert [n for n, _ in await log.read_items("main", after=3)] == [4]
    await log.trim_items("main", up_to=100)
    assert await log.read_items("main", after=0) == []
    assert await log.append_item("main", ItemChange("put", "e", 1, "e")) == 5


async def test_in_a_new_store_the_log_goes_on_above_what_the_release_knows(log: ItemLog) -> None:
    await log.continue_items("main", after=7)
    assert await log.append_item("main", ItemChange("put", "a", 1, "a")) == 8
    await log.continue_items("main", after=3)
    assert await log.append_item("main", ItemChange("put", "b", 1, "b")) == 9
