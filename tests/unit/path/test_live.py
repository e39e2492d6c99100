"""Live statistics in a replica: what is counted shows in trending and popular, whatever happens to releases."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np

from models.candidates import COLUMN_OF, Source
from models.consumer.settings import ConsumerSettings
from models.consumer.statistics import StatisticsConsumer
from models.encoder import HashEncoder
from models.events import Event, EventType
from models.items.change import ItemChange
from models.items.log import MemoryItemLog
from models.releases import Release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.store.memory_streams import MemoryEventStreams
from models.store.port import StoreUnavailable
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings
from serve.fakes import FakeExplainer, SilentMetrics
from serve.ingest import EventService
from serve.live import LiveFollower
from serve.live_items import ItemFollower
from serve.readiness import Readiness
from serve.releases import ReleaseHolder
from serve.schemas import EventIn
from serve.settings import ServeSettings
from serve.signing import Signer
from serve.stages import StoreEventSink

NOW = 1_760_000_000_000


class Replica:
    """One replica that holds a release and follows what a consumer publishes."""

    def __init__(self, tiny) -> None:
        self.streams = MemoryEventStreams()
        self.items = MemoryItemLog()
        self.tiny = tiny
        self.holder = ReleaseHolder(
            self.streams,
            lambda _: tiny.artifacts,
            tenants=("main",),
            settings=RetrievalSettings(),
            warm=lambda bundle: bundle.engine,
            items=ItemFollower(self.items, warm=lambda bundle: bundle.engine),
        )
        self.follower = LiveFollower(self.streams, self.holder, tenants=("main",))
        self.consumer = StatisticsConsumer(self.streams, tenant="main", settings=ConsumerSettings())

    async def release(self, seq: int = 0, *, of: Release | None = None) -> None:
        _, epoch = await self.streams.read_release("main")
        text = replace(of or self.tiny.release, item_log_seq=seq).to_json()
        assert await self.streams.move_release("main", text, expected_epoch=epoch)
        assert await self.holder.refresh()

    async def happen(self, *items: str) -> None:
        events = [Event(f"e-{i}-{n}", f"u{n}", EventType.click, NOW, i) for n, i in enumerate(items)]
        await self.streams.append("main", events, now_ms=NOW)
        await self.count()

    async def count(self) -> None:
        while await self.consumer.step():
            pass
        await self.streams.publish_statistics("main", (await self.consumer.snapshot()).to_bytes())

    @property
    def bundle(self):
        return self.holder.bundle("main", self.holder.current("main"))


async def test_what_is_counted_shows_in_lists_reasons_and_retrieval(tiny) -> None:
    replica = Replica(tiny)
    await replica.release()
    await replica.follower.refresh()
    bundle = replica.bundle
    coldest = int(np.argmax(bundle.popularity_rank))
    item, before = bundle.catalog.item_id(coldest), float(bundle.statistics.popularity[coldest])
    await replica.happen(*[item] * 300, "not-in-the-catalog")
    await replica.follower.refresh()
    assert bundle.popularity[coldest] == before + 300
    assert (bundle.popularity_rank[coldest], bundle.trending_rank[coldest]) == (0, 0)
    assert bundle.statistics.popularity[coldest] == before, "the ranker reads what it was trained on"
    found = bundle.engine.retrieve(RetrievalQuery(n=len(bundle.catalog), now_ms=NOW))
    for source in (Source.popular, Source.trending):
        column = found.source_scores[:, COLUMN_OF[source]]
        assert found.rows[int(np.argmax(column))] == coldest
    assert replica.follower.unknown_items == {"main": 1}


async def test_a_release_that_comes_later_gets_what_was_counted_before(tiny) -> None:
    replica = Replica(tiny)
    await replica.release()
    item = replica.bundle.catalog.item_id(0)
    await replica.happen(*[item] * 300)
    await replica.follower.refresh()
    await replica.release(1)
    assert replica.bundle.popularity[0] == replica.bundle.statistics.popularity[0]
    await replica.follower.refresh()
    assert replica.bundle.popularity[0] == replica.bundle.statistics.popularity[0] + 300
    # The same again adds nothing: a snapshot is a total, not a change.
    await replica.happen()
    await replica.follower.refresh()
    assert replica.bundle.popularity[0] == replica.bundle.statistics.popularity[0] + 300


async def test_a_store_that_is_away_and_a_damaged_snapshot_change_nothing(tiny, monkeypatch) -> None:
    replica = Replica(tiny)
    await replica.release()
    await replica.happen(*[replica.bundle.catalog.item_id(0)] * 300)
    await replica.follower.refresh()
    counted = replica.bundle.counted
    await replica.streams.publish_statistics("main", b"nonsense")
    await replica.follower.refresh()
    assert replica.bundle.counted is counted

    async def away(*_, **__):
        raise StoreUnavailable("away")

    monkeypatch.setattr(replica.streams, "read_statistics", away)
    await replica.follower.refresh()
    assert replica.bundle.counted is counted


async def test_a_follower_follows_until_it_is_stopped(tiny) -> None:
    replica = Replica(tiny)
    await replica.release()
    await replica.follower.start(poll_s=0.01)
    await replica.happen(*[replica.bundle.catalog.item_id(0)] * 300)
    for _ in range(300):
        if replica.bundle.counted is not replica.bundle.statistics:
            break
        await asyncio.sleep(0.01)
    assert replica.bundle.popularity[0] == replica.bundle.statistics.popularity[0] + 300
    await replica.follower.stop()


async def test_events_of_an_item_nobody_has_yet_are_kept_counted_and_apply_once_a_release_has_it(
    tiny, items_of, log_of
) -> None:
    replica, sink = Replica(tiny), SilentMetrics()
    await replica.release()
    service = EventService(StoreEventSink(replica.streams), Signer(b"0123456789abcdef"), sink, ServeSettings())
    posted = [EventIn(event_id=f"e{n}", user_id=f"u{n}", item_id="i40", type="click") for n in range(300)]
    assert {r.status for r in await service.accept(posted, tenant="main")} == {"accepted"}
    await replica.count()
    await replica.follower.refresh()
    ready = Readiness(replica.streams, replica.holder, FakeExplainer(), tenants=("main",), live=replica.follower)
    assert (await ready.state())["statistics"]["main"]["unknown_items"] == 1
    # Kept in the profile too, and in nobody's way meanwhile.
    user = await replica.streams.fetch("main", "u7", None, timeout_s=1)
    asked = RetrievalQuery(n=60, now_ms=int(user.timestamps_ms[-1]) + 1, user=user)
    assert user.item_ids == ("i40",) and len(replica.bundle.engine.retrieve(asked)) == 40
    settings, retrieval = PipelinesSettings(train_ranker=False), RetrievalSettings()
    builder = Builder(
        tiny.artifacts, settings=settings, retrieval=retrieval, encoder=lambda: HashEncoder(32), encoder_uri="hash"
    )
    await replica.release(of=builder.run(Dataset("wider", items_of(41), log_of(items=40))).release)
    await replica.follower.refresh()
    bundle = replica.bundle
    (row,) = bundle.catalog.rows(["i40"])
    assert bundle.statistics.popularity[row] == 0 and bundle.popularity[row] == 300
    assert (bundle.popularity_rank[row], bundle.trending_rank[row]) == (0, 0)
    found = bundle.engine.retrieve(asked)
    assert len(found) == 40 and int(row) not in found.rows.tolist(), "its user has it, so it is not recommended again"
    assert (await ready.state())["statistics"]["main"]["unknown_items"] == 0


async def test_events_of_an_item_that_is_put_later_apply_without_a_new_release(tiny) -> None:
    replica = Replica(tiny)
    await replica.release()
    await replica.happen(*["i40"] * 300)
    await replica.follower.refresh()
    assert replica.follower.unknown_items == {"main": 1}
    vector = HashEncoder(32).encode(["Film 40 drama"])[0]
    await replica.items.append_item("main", ItemChange("put", "i40", NOW, title="Film 40 drama", vector=vector))
    await replica.holder.catch_up()
    await replica.follower.refresh()
    (row,) = replica.bundle.catalog.rows(["i40"])
    assert (replica.bundle.popularity[row], replica.bundle.trending_rank[row]) == (300, 0)
    assert replica.follower.unknown_items == {"main": 0}
