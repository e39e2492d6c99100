"""The consumer loop: statistics, snapshots and the event log of one tenant, until it is told to stop.

Statistics and log are two groups with positions of their own: a full disk does not stop the statistics. Errors of the
store or the disk are logged and tried again; nothing is lost by them. Run by a process of its own
(`pipelines.consumer`) or by a deployment; knows nothing of either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.consumer.event_log import compact, write_entries
from models.consumer.settings import ConsumerSettings
from models.consumer.source import EventSource, Received, StreamSource
from models.consumer.statistics import StatisticsConsumer
from models.ids import BUCKETS
from models.store.port import StoreError, StoreMismatch
from models.store.streams import EventStreams, Group

log = logging.getLogger("raycommend.consumer")
_RETRY_S = 1.0


class LogWriter:
    """Writes what a source reads as files of the event log, then acknowledges it."""

    def __init__(self, source: EventSource, folder: Path, settings: ConsumerSettings) -> None:
        self._source, self._folder, self._settings = source, folder, settings
        self._held: list[Received] = []
        self._since = time.monotonic()
        self.written = 0

    @property
    def holding(self) -> bool:
        """Whether anything was read and not written yet."""
        return bool(self._held)

    async def step(self, *, flush: bool = False) -> int:
        """Read once; write when enough is held or it is time. Returns how many messages were read."""
        room = self._settings.log_events - len(self._held)
        read = await self._source.read(room) if room > 0 and not flush else []
        if not self._held:
            self._since = time.monotonic()
        self._held += read
        late = time.monotonic() - self._since >= self._settings.log_s
        if self._held and (flush or late or len(self._held) >= self._settings.log_events):
            held, folder = [(r.partition, r.entry) for r in self._held], self._folder
            await asyncio.to_thread(write_entries, folder, held)
            await self._source.acknowledge()
            self.written += sum(entry.event is not None for _, entry in held)
            self._held = []
            await asyncio.to_thread(compact, folder, files=self._settings.log_files)
        return len(read)


class Consumer:
    """All of one tenant's consuming."""

    def __init__(
        self,
        streams: EventStreams,
        *,
        tenant: str,
        log_folder: Path,
        settings: ConsumerSettings | None = None,
        buckets: int = BUCKETS,
    ) -> None:
        self._streams, self._tenant = streams, tenant
        self._settings = settings or ConsumerSettings()
        self.statistics = StatisticsConsumer(streams, tenant=tenant, settings=self._settings, buckets=buckets)
        self.log = LogWriter(StreamSource(streams, tenant=tenant, buckets=buckets), log_folder, self._settings)
        self.version = 0
        self._next_snapshot = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop`, then write what is held. Raises StoreMismatch, which no retry can put right."""
        loops = [asyncio.create_task(self._repeat(step, stop)) for step in (self._count, self.log.step)]
        try:
            await asyncio.gather(*loops)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        try:
            await self.publish(force=True)
            await self.log.step(flush=True)
        except (StoreError, OSError) as error:
            log.warning("what was not written is taken again by the next consumer: %s", error)

    async def drain(self) -> None:
        """Consume everything there is now, publish and write. Raises StoreError."""
        while await self.statistics.step() + await self.log.step() or self.log.holding:
            await self.log.step(flush=True)
        await self.publish(force=True)

    async def _count(self) -> int:
        done = await self.statistics.step()
        await self.publish()
        return done

    async def publish(self, *, force: bool = False) -> None:
        """Publish a snapshot when something changed and it is time (or `force`). Raises StoreError."""
        started = time.monotonic()
        if not self.statistics.changed or (started < self._next_snapshot and not force):
            return
        snapshot = await self.statistics.snapshot()
        body = await asyncio.to_thread(snapshot.to_bytes)
        self.version = await self._streams.publish_statistics(self._tenant, body)
        now = time.monotonic()
        self._next_snapshot = now + max(self._settings.snapshot_s, 10 * (now - started))

    async def _repeat(self, step: Any, stop: asyncio.Event) -> None:
        while not stop.is_set():
            pause = 0.0
            try:
                if not await step():
                    pause = self._settings.idle_s
            except StoreMismatch:
                raise
            except (StoreError, OSError) as error:
                log.warning("consuming goes on in %.0f s: %s", _RETRY_S, error)
                pause = _RETRY_S
            with_stop = asyncio.ensure_future(stop.wait())
            await asyncio.wait([with_stop], timeout=pause)
            with_stop.cancel()

    async def state(self) -> dict[str, Any]:
        """Return counts, lag of both groups and the version of the snapshot. Raises StoreError."""
        lags = {g.name: asdict(await self._streams.lag(self._tenant, group=g)) for g in Group}
        counts = asdict(self.statistics.counts)
        return {**counts, "failed_buckets": len(counts["failed_buckets"]), "logged": self.log.written} | {
            "lag": lags,
            "version": self.version,
        }
