"""Ingesting from any source: written before it is acknowledged, and what is no event set aside."""

from __future__ import annotations

import json
import time

import pytest

from cluster.ingest import decode_event
from models.consumer.source import Received
from models.events import Event, EventType
from models.store.memory_streams import MemoryEventStreams
from models.store.port import EventStatus, StoreUnavailable
from models.store.streams import StreamEntry
from pipelines.ingest import Ingest
from serve.settings import ServeSettings

NOW = int(time.time() * 1000)


def message(**fields: object) -> bytes:
    return json.dumps({"event_id": "e1", "user_id": "u1", "item_id": "i1", "type": "click", **fields}).encode()


def test_a_message_is_what_the_events_endpoint_takes() -> None:
    settings = ServeSettings()
    event = decode_event(message(timestamp_ms=NOW, value=2, type="purchase", decision_id="d"), settings)
    assert event == Event("e1", "u1", EventType.purchase, NOW, "i1", 2.0, "d")
    anonymous = decode_event(message(user_id=None, session_id="s1"), settings)
    # Against the clock of this moment: the module may have been imported minutes ago.
    assert anonymous.owner == "~s:s1" and abs(anonymous.timestamp_ms - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
        (message(type="secret-word"), "type"),
        (message(user_id="secret word"), "user_id"),
        (message(user_id=None), "user_id or session_id"),
        (message(timestamp_ms=4_102_444_800_000), "future"),  # the year 2100
        (message(timestamp_ms=5), "oldest"),
        (message(type="impression"), "proof"),
    ],
)
def test_a_bad_message_is_refused_with_a_reason_that_does_not_quote_it(bad: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        decode_event(bad, ServeSettings())
    assert "secret" not in str(caught.value)


class ListSource:
    """A source over batches in memory that remembers how much was acknowledged."""

    def __init__(self, *batches: list[StreamEntry]) -> None:
        self._batches, self.read_batches, self.acknowledged = list(batches), 0, 0

    async def read(self, count: int) -> list[Received]:
        if self.read_batches == len(self._batches):
            return []
        self.read_batches += 1
        return [Received(0, entry) for entry in self._batches[self.read_batches - 1]]

    async def acknowledge(self) -> None:
        self.acknowledged = self.read_batches


def click(number: int) -> StreamEntry:
    return StreamEntry(f"{NOW}-{number}", Event(f"e{number}", f"u{number}", EventType.click, NOW, "i"))


class AwayStore(MemoryEventStreams):
    """Away for a while, then a bucket that fails once; remembers what was acknowledged while it was away."""

    away, source, calls = 2, ListSource(), 0

    async def append(self, tenant, events, **options):
        assert self.source.acknowledged == 0
        self.calls += 1
        if self.calls <= self.away:
            raise StoreUnavailable("away")
        if self.calls == self.away + 1:
            return [EventStatus.failed, *await super().append(tenant, events[1:], **options)]
        return await super().append(tenant, events, **options)


async def test_nothing_is_acknowledged_before_all_of_it_is_written() -> None:
    poison = StreamEntry(f"{NOW}-9", None, reason="no event", payload=b"?")
    source, slept = ListSource([click(1), poison, click(2)]), []
    store = AwayStore(require_durable=False)
    store.source = source

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    ingest = Ingest(source, store, tenant="main", name="test", sleep=sleep)
    assert await ingest.step() == 3 and source.acknowledged == 1 and len(slept) == 3
    assert (ingest.counts.accepted, ingest.counts.duplicate, ingest.counts.dead) == (2, 0, 1)
    (letter,) = await store.dead_letters("main")
    assert (letter.source, letter.reason, letter.payload) == (f"test:0:{NOW}-9", "no event", b"?")
    assert await ingest.step() == 0


async def test_a_backlog_of_one_user_lands_whole_and_only_the_same_again_is_left_out() -> None:
    days = [
        StreamEntry(f"{NOW}-{n}", Event(f"e{n}", "u1", EventType.click, NOW - 60_000 + n, f"i{n}")) for n in range(1500)
    ]
    again = StreamEntry(f"{NOW}-9999", Event("again", "u1", EventType.click, NOW - 58_000, "i1499"))
    source = ListSource(days[:500], days[500:1000], days[1000:], [again, click(7)])
    store = MemoryEventStreams(require_durable=False)
    ingest = Ingest(source, store, tenant="main", name="test")
    while await ingest.step():
        pass
    assert (ingest.counts.accepted, ingest.counts.repeat, ingest.counts.dead) == (1501, 1, 0)
    assert len((await store.fetch("main", "u1", None, timeout_s=1)).seen) == 1500


async def test_what_was_written_before_a_crash_is_a_duplicate_after_it() -> None:
    store = MemoryEventStreams(require_durable=False)
    await Ingest(ListSource([click(1)]), store, tenant="main", name="test").step()
    again = Ingest(ListSource([click(1), click(2)]), store, tenant="main", name="test")
    await again.step()
    assert (again.counts.accepted, again.counts.duplicate) == (1, 1)
    assert len((await store.fetch("main", "u1", None, timeout_s=1)).item_ids) == 1
