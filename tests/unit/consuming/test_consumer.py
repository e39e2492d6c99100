"""The consumer without a server: crashes, refusals, bounds, the event log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from models.behaviour.snapshot import LiveStatistics
from models.consumer.consumer import Consumer
from models.consumer.event_log import compact, read_event_log, write_entries
from models.consumer.settings import ConsumerSettings
from models.consumer.source import StreamSource
from models.consumer.statistics import StatisticsConsumer
from models.events import Event, EventType
from models.ids import BUCKETS
from models.store.memory_streams import MemoryEventStreams
from models.store.port import StoreMismatch, StoreTimeout
from models.store.streams import Group, StreamEntry

NOW = 1_760_000_000_000
SETTINGS = ConsumerSettings(batch=3, idle_s=0.01, snapshot_s=0.05, log_s=0.05)


def events(count: int, *, start: int = 0) -> list[Event]:
    return [
        Event(f"e{i}", f"u{i % 5}", EventType.click, NOW + i, f"i{(7 * i + 1) % 11}")
        for i in range(start, start + count)
    ]


class FailingStreams(MemoryEventStreams):
    """Answers every nth call with a time-out, after or before it took effect."""

    calls = 0

    async def take(self, *args, **options):
        self.calls += 1
        found = await super().take(*args, **options)
        if self.calls % 3 == 0:
            raise StoreTimeout("lost the answer")
        return found

    async def commit(self, *args, **options):
        self.calls += 1
        if self.calls % 4 == 0:
            raise StoreTimeout("lost the question")
        found = await super().commit(*args, **options)
        if self.calls % 5 == 0:
            raise StoreTimeout("lost the answer")
        return found


async def state_of(store: MemoryEventStreams) -> dict:
    state = await store.read_state("main", range(BUCKETS), group=Group.statistics)
    return {bucket: fields for bucket, (_, fields) in state.items()}


async def fed(store: MemoryEventStreams, count: int = 60) -> MemoryEventStreams:
    await store.append("main", events(count), now_ms=NOW + count)
    return store


def consumer(store: MemoryEventStreams, folder: Path, settings: ConsumerSettings = SETTINGS) -> Consumer:
    return Consumer(store, tenant="main", log_folder=folder, settings=settings)


async def test_everything_is_counted_once_logged_once_and_published(tmp_path: Path) -> None:
    store = await fed(MemoryEventStreams(require_durable=False))
    one = consumer(store, tmp_path)
    await one.drain()
    body, version = await store.read_statistics("main")
    live = LiveStatistics.from_bytes(body)
    assert (live.events, version, int(live.users.sum())) == (60, 1, len({(e.owner, e.item_id) for e in events(60)}))
    assert len(read_event_log(tmp_path)) == 60
    state = await one.state()
    assert (state["applied"], state["logged"], state["dead"]) == (60, 60, 0)
    assert {lag["entries"] for lag in state["lag"].values()} == {0}
    await one.drain()
    assert one.version == 1


async def test_lost_answers_change_nothing_in_the_end(tmp_path: Path) -> None:
    calm, rough = MemoryEventStreams(require_durable=False), FailingStreams(require_durable=False)
    await consumer(await fed(calm), tmp_path / "calm").drain()
    one = consumer(await fed(rough), tmp_path / "rough")
    for _ in range(500):
        try:
            await one.drain()
            break
        except StoreTimeout:
            continue
    else:
        pytest.fail("never done")
    assert await state_of(rough) == await state_of(calm)
    rows = [sorted(read_event_log(tmp_path / n).to_arrow().to_pylist(), key=str) for n in ("calm", "rough")]
    assert rows[0] == rows[1] and len(rows[0]) == 60


async def test_two_consumers_count_what_one_would(tmp_path: Path) -> None:
    calm, shared = MemoryEventStreams(require_durable=False), MemoryEventStreams(require_durable=False)
    await consumer(await fed(calm), tmp_path / "calm").drain()
    await fed(shared)
    both = [StatisticsConsumer(shared, tenant="main", settings=SETTINGS) for _ in range(2)]
    for _ in range(60):
        await asyncio.gather(*(one.step() for one in both))
    assert await state_of(shared) == await state_of(calm)


async def version_of(store: MemoryEventStreams) -> int:
    return (await store.read_statistics("main"))[1]


async def test_a_running_consumer_follows_and_writes_what_it_holds_when_stopped(tmp_path: Path) -> None:
    store, stop = MemoryEventStreams(require_durable=False), asyncio.Event()
    one = consumer(store, tmp_path)
    task = asyncio.create_task(one.run(stop))
    for start in range(0, 60, 20):
        await store.append("main", events(20, start=start), now_ms=NOW + start)
        async with asyncio.timeout(10):
            # The last is written when it stops.
            while one.statistics.counts.applied < start + 20 or (start < 40 and await version_of(store) <= start // 20):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    stop.set()
    await asyncio.wait_for(task, 5)
    body, version = await store.read_statistics("main")
    assert LiveStatistics.from_bytes(body).events == 60 and version >= 2
    assert len(read_event_log(tmp_path)) == 60


async def test_a_full_disk_does_not_stop_the_statistics(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store, stop = await fed(MemoryEventStreams(require_durable=False)), asyncio.Event()
    one = consumer(store, tmp_path / "file")
    task = asyncio.create_task(one.run(stop))
    await asyncio.sleep(0.3)
    stop.set()
    await asyncio.wait_for(task, 5)
    assert one.statistics.counts.applied == 60 and one.log.written == 0
    assert (await store.lag("main", group=Group.log)).entries == 60


async def test_another_half_life_is_refused_by_name(tmp_path: Path) -> None:
    store = await fed(MemoryEventStreams(require_durable=False))
    await consumer(store, tmp_path).drain()
    await store.append("main", events(5, start=60), now_ms=NOW + 99)
    other = consumer(store, tmp_path, SETTINGS.model_copy(update={"half_life_days": 3.0}))
    with pytest.raises(StoreMismatch, match="halve every 14 days, this process wants 3"):
        await asyncio.wait_for(other.run(asyncio.Event()), 5)
    await consumer(store, tmp_path).drain()
    assert len(read_event_log(tmp_path)) == 65


async def test_damaged_states_begin_anew_and_are_counted(tmp_path: Path) -> None:
    store = await fed(MemoryEventStreams(require_durable=False))
    await consumer(store, tmp_path).drain()
    for (_, _, group), state in store._groups.items():
        if group is Group.statistics and "i0" in state.fields:
            state.fields["i0"] = b"\x09 nonsense"
    await store.append("main", [Event("x", "u0", EventType.click, NOW, "i0")], now_ms=NOW + 99)
    one = consumer(store, tmp_path)
    await one.drain()
    assert one.statistics.counts.damaged > 0 and one.statistics.counts.applied == 1


async def test_items_per_bucket_are_bounded_and_the_weakest_go(tmp_path: Path) -> None:
    store = MemoryEventStreams(require_durable=False)
    days = [Event(f"e{i}", "u", EventType.click, NOW - i * 86_400_000, f"i{i}") for i in range(20)]
    await store.append("main", days, now_ms=NOW)
    one = consumer(store, tmp_path, SETTINGS.model_copy(update={"items_per_bucket": 4, "followers": 0}))
    await one.drain()
    (fields,) = (await state_of(store)).values()
    assert sorted(i for i in fields if not i.startswith("=")) == ["i0", "i1", "i2", "i3"]
    assert one.statistics.counts.dropped_items == 16


async def test_what_was_read_and_not_acknowledged_is_read_again_first() -> None:
    store = await fed(MemoryEventStreams(require_durable=False))
    first = await StreamSource(store, tenant="main").read(2 * BUCKETS)
    source = StreamSource(store, tenant="main")
    assert await source.read(2 * BUCKETS) == first
    assert await source.read(2 * BUCKETS) == []
    await source.acknowledge()
    rest = await source.read(1000 * BUCKETS)
    assert len(first) + len(rest) == 60 and not {r.entry.entry_id for r in first} & {r.entry.entry_id for r in rest}


def entries(*numbers: int, day: int = 0) -> list[tuple[int, StreamEntry]]:
    return [(1, StreamEntry(f"{NOW + day * 86_400_000}-{n}", events(1, start=n)[0])) for n in numbers]


def test_the_log_has_a_folder_per_day_and_compacting_keeps_every_event_once(tmp_path: Path) -> None:
    for numbers in ((1, 2), (2, 3), (4,)):
        write_entries(tmp_path, entries(*numbers))
    write_entries(tmp_path, [*entries(5, day=1), (2, StreamEntry(f"{NOW}-5", None, reason="poison"))])
    assert len(list(tmp_path.glob("day=*"))) == 2 and len(read_event_log(tmp_path)) == 5
    before = read_event_log(tmp_path)
    assert compact(tmp_path, files=3) == 3
    assert len(list(tmp_path.glob("day=*/*.parquet"))) == 2
    assert read_event_log(tmp_path).to_arrow().equals(before.to_arrow())
    # A crash after the merged file was written and before the others went leaves repeats.
    write_entries(tmp_path, entries(1, 2))
    (tmp_path / "day=2025-10-09" / "part-x.partial").write_bytes(b"half a file")
    assert len(read_event_log(tmp_path)) == 5


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert len(read_event_log(tmp_path)) == 0 and compact(tmp_path, files=2) == 0
