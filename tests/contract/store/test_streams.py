"""What a consumer of the streams may rely on: at least once, effect exactly once, dead letters, lag."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from models.events import Event, EventType
from models.ids import BUCKETS, bucket_of
from models.store.memory_streams import MemoryEventStreams
from models.store.redis_streams import RedisEventStreams
from models.store.streams import Commit, DeadLetter, EventStreams, Group, Previous, StreamEntry, Taken

NOW = int(time.time() * 1000)
ALL = range(BUCKETS)
STAT = Group.statistics
B1 = bucket_of("u1")


def click(number: int, owner: str = "u1") -> Event:
    return Event(f"e{number}", owner, EventType.click, NOW + number, f"i{number}")


@pytest.fixture
async def open_streams(fresh) -> AsyncIterator[Callable[[], Awaitable[EventStreams]]]:
    opened: list[EventStreams] = []

    async def one() -> EventStreams:
        if fresh.kind == "memory":
            store: EventStreams = opened[0] if opened else MemoryEventStreams(durability="fsync")
        else:
            cluster = fresh.kind == "cluster"
            store = RedisEventStreams(fresh.servers[0].url, cluster=cluster, write_timeout_s=5.0)
        opened.append(store)
        return store

    yield one
    for store in opened:
        await store.close()


@pytest.fixture
async def streams(open_streams) -> EventStreams:
    return await open_streams()


async def take(store: EventStreams, **options: Any) -> list[Taken]:
    return await store.take("main", ALL, **{"group": STAT, "count": 100, **options})


def done(taken: Taken, **options: Any) -> Commit:
    ids = [e.entry_id for e in taken.entries]
    return Commit(bucket=taken.bucket, position=taken.position, **{"done": ids, **options})


async def test_every_event_reaches_the_consumer_of_its_bucket_in_order(streams: EventStreams) -> None:
    events = [click(i, f"u{i % 7}") for i in range(50)]
    sent_ms = int(time.time() * 1000)
    await streams.append("main", events, now_ms=sent_ms)
    taken = await take(streams)
    assert {t.bucket for t in taken} == {bucket_of(f"u{i}") for i in range(7)}
    for one in taken:
        assert [e.event for e in one.entries] == [e for e in events if bucket_of(e.owner) == one.bucket]
        assert all(0 <= e.arrived_ms - sent_ms < 60_000 for e in one.entries)
    assert await take(streams) == []


async def test_an_entry_says_what_only_the_append_knew(streams: EventStreams) -> None:
    history = Event("h", "u1", EventType.rating, NOW - 9, "i0", 5.0)
    await streams.append("main", [history], now_ms=NOW, to_stream=False)
    hidden = Event("x", "u1", EventType.hide, NOW + 2, "i9")
    search = Event("s", "u1", EventType.search, NOW + 1)
    again = Event("e7", "u1", EventType.click, NOW + 3, "i0")
    await streams.append("main", [click(1), search, hidden, again], now_ms=NOW)
    (taken,) = await take(streams)
    facts = [(e.new, e.previous) for e in taken.entries]
    assert facts == [(True, Previous("i0", NOW - 9)), (False, None), (True, Previous("i1", NOW + 1)), (False, None)]


async def test_what_was_taken_and_not_committed_is_found_again(streams: EventStreams, open_streams) -> None:
    await streams.append("main", [click(1), click(2)], now_ms=NOW)
    (first,) = await take(streams)
    successor = await open_streams()
    assert await take(successor) == []
    assert await take(successor, again=True) == [first]
    assert await successor.commit("main", [done(first)], group=STAT) == [True]
    assert await take(successor, again=True) == []
    assert await take(streams, group=Group.log) != []


async def test_a_replay_has_no_second_effect(streams: EventStreams) -> None:
    await streams.append("main", [click(1)], now_ms=NOW)
    (taken,) = await take(streams)
    commit = done(taken, fields={"i1": b"one"})
    assert await streams.commit("main", [commit], group=STAT) == [True]
    replay = done(taken, fields={"i1": b"two"})
    assert await streams.commit("main", [replay], group=STAT) == [False]
    position, fields = (await streams.read_state("main", ALL, group=STAT))[B1]
    assert (position, fields) == (taken.entries[-1].entry_id, {"i1": b"one"})


async def test_effects_keep_the_order_of_the_stream_with_two_consumers(streams: EventStreams, open_streams) -> None:
    other = await open_streams()
    await streams.append("main", [click(1)], now_ms=NOW)
    (slow,) = await take(streams)
    await streams.append("main", [click(2)], now_ms=NOW)
    (hasty,) = await take(other)
    assert await other.commit("main", [done(hasty, fields={"i2": b"x"})], group=STAT) == [False]
    assert await streams.commit("main", [done(slow, fields={"i1": b"x"})], group=STAT) == [True]
    (late,) = await take(other, again=True)
    assert [e.event for e in late.entries] == [click(2)]
    assert await other.commit("main", [done(late, fields={"i2": b"x"})], group=STAT) == [True]
    fields = await streams.read_fields("main", {B1: ["i1", "i2", "i3"], B1 + 1: []}, group=STAT)
    assert fields == {B1: {"i1": b"x", "i2": b"x"}}


async def test_of_racing_commits_of_the_same_entries_one_counts(streams: EventStreams) -> None:
    await streams.append("main", [click(1)], now_ms=NOW)
    (taken,) = await take(streams)
    commits = [streams.commit("main", [done(taken, fields={"i1": bytes([i + 1])})], group=STAT) for i in range(9)]
    assert sorted(await asyncio.gather(*commits)) == [[False]] * 8 + [[True]]


async def test_fields_can_be_removed_without_entries(streams: EventStreams) -> None:
    await streams.append("main", [click(1), click(2)], now_ms=NOW)
    (taken,) = await take(streams)
    await streams.commit("main", [done(taken, fields={"i1": b"1", "i2": b"2"})], group=STAT)
    at = taken.entries[-1].entry_id
    assert await streams.commit("main", [Commit(bucket=B1, position="0-0", fields={"i1": b""})], group=STAT) == [False]
    assert await streams.commit("main", [Commit(bucket=B1, position=at, fields={"i1": b""})], group=STAT) == [True]
    assert await streams.read_state("main", ALL, group=STAT) == {B1: (at, {"i2": b"2"})}


async def test_dead_letters_keep_the_reason_and_the_group_goes_on(streams: EventStreams) -> None:
    await streams.append("main", [click(1), click(2)], now_ms=NOW)
    (taken,) = await take(streams)
    bad = StreamEntry(taken.entries[0].entry_id, None, reason="nobody understands it", payload=b"\0\xff")
    assert await streams.commit("main", [done(taken, dead=[bad])], group=STAT) == [True]
    await streams.bury("main", [DeadLetter("kafka:0:7", "no JSON", b"{")])
    letters = await streams.dead_letters("main")
    assert {(one.source, one.reason, one.payload) for one in letters} == {
        (bad.entry_id, "nobody understands it", b"\0\xff"),
        ("kafka:0:7", "no JSON", b"{"),
    }
    await streams.append("main", [click(3)], now_ms=NOW)
    ((third,),) = [t.entries for t in await take(streams)]
    assert third.event == click(3)


async def test_lag_counts_what_no_position_covers(streams: EventStreams) -> None:
    assert (await streams.lag("main", group=STAT)).entries == 0
    now_ms = time.time_ns() // 1_000_000  # lag goes by the clock, and tests may run long after they were collected
    await streams.append("main", [click(1), click(2), click(3, "u2")], now_ms=now_ms)
    before = await streams.lag("main", group=STAT)
    assert before.entries == 3 and 0 <= before.oldest_ms < 60_000
    taken = await take(streams)
    assert (await streams.lag("main", group=STAT)).entries == 3
    await streams.commit("main", [done(t) for t in taken], group=STAT)
    assert (await streams.lag("main", group=STAT)).entries == 0
    assert (await streams.lag("main", group=Group.log)).entries == 3


async def test_a_snapshot_is_read_only_when_it_is_newer(streams: EventStreams) -> None:
    assert await streams.read_statistics("main") is None
    assert await streams.publish_statistics("main", b"a\0") == 1
    assert await streams.publish_statistics("main", b"b") == 2
    assert await streams.read_statistics("main", newer_than=1) == (b"b", 2)
    assert await streams.read_statistics("main", newer_than=2) is None
    assert await streams.read_statistics("other") is None


async def test_tenants_do_not_see_each_other(streams: EventStreams) -> None:
    await streams.append("other", [click(1)], now_ms=NOW)
    assert await take(streams) == []
    with pytest.raises(ValueError):
        await streams.take("a}b", ALL, group=STAT, count=1)


# What only a real server can show.


@pytest.fixture
async def server_streams(fresh, open_streams) -> EventStreams:
    if fresh.kind == "memory":
        pytest.skip("there are no bytes in memory")
    return await open_streams()


async def raw(streams: Any, *command: Any) -> Any:
    (reply,) = await streams._servers.run([(command[1], command)])
    return reply


async def test_poison_in_a_stream_is_named_and_the_rest_goes_on(server_streams) -> None:
    key = f"{{main:{B1}}}ev"
    await server_streams.append("main", [click(1)], now_ms=NOW)
    await raw(server_streams, "XADD", key, "*", "d", b"\x63 from another version")
    await raw(server_streams, "XADD", key, "*", "what", "ever")
    head = b"\x01\x02" + bytes(12)
    await raw(server_streams, "XADD", key, "*", "d", head + b"u1\0e9\0bad item\0", "p", b"??")
    await server_streams.append("main", [click(2)], now_ms=NOW)
    (taken,) = await take(server_streams)
    assert [e.event for e in taken.entries] == [click(1), None, None, None, click(2)]
    assert [e.reason for e in taken.entries][1:4] == [
        "not an event of this schema",
        "not an event of this schema",
        "event 0: the item id is not valid",
    ]
    dead = [e for e in taken.entries if e.event is None]
    assert await server_streams.commit("main", [done(taken, dead=dead)], group=STAT) == [True]
    assert len(await server_streams.dead_letters("main")) == 3


async def test_entries_trimmed_while_they_were_taken_do_not_stop_the_group(server_streams) -> None:
    await server_streams.append("main", [click(1), click(2)], now_ms=NOW)
    await take(server_streams)
    await raw(server_streams, "XTRIM", f"{{main:{B1}}}ev", "MAXLEN", 0)
    (lost,) = await take(server_streams, again=True)
    assert [e.reason for e in lost.entries] == ["trimmed before it was read"] * 2
    assert await server_streams.commit("main", [done(lost)], group=STAT) == [True]
    await server_streams.append("main", [click(3)], now_ms=NOW)
    assert [e.event for t in await take(server_streams) for e in t.entries] == [click(3)]


async def test_a_lost_group_goes_on_at_its_position(server_streams) -> None:
    await server_streams.append("main", [click(1)], now_ms=NOW)
    (taken,) = await take(server_streams)
    await server_streams.commit("main", [done(taken)], group=STAT)
    await server_streams.append("main", [click(2)], now_ms=NOW)
    await raw(server_streams, "XGROUP", "DESTROY", f"{{main:{B1}}}ev", STAT)
    assert [e.event for t in await take(server_streams) for e in t.entries] == [click(2)]


async def test_one_damaged_stream_does_not_stop_the_others(server_streams) -> None:
    await server_streams.append("main", [click(1), click(2, "u2")], now_ms=NOW)
    key = f"{{main:{B1}}}ev"
    await raw(server_streams, "DEL", key)
    await raw(server_streams, "SET", key, "not a stream")
    taken = {t.bucket: t for t in await take(server_streams)}
    assert taken[B1].failed and not taken[B1].entries
    assert [e.event for e in taken[bucket_of("u2")].entries] == [click(2, "u2")]
