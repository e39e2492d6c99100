"""Ingesting: events of any source into the online store, as if they had been posted.

Written, then acknowledged: a crash between writes again, and the store knows an event id it has seen. What is no event
becomes a dead letter, with the reason, and the rest goes on. What waited in the source comes all at once: no user's
events are too many here, but the same again within moments is a repeat, as it is for the endpoint. Called by the
`ingest` command.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from models.consumer.source import EventSource, Received
from models.events import Event
from models.store.port import MAX_EVENTS_PER_CALL, EventStatus, StoreError
from models.store.streams import DeadLetter, EventStreams

log = logging.getLogger("raycommend.ingest")
_RETRY_S = 1.0


@dataclass(slots=True)
class IngestCounts:
    """What was done since the start."""

    accepted: int = 0
    duplicate: int = 0
    repeat: int = 0
    dead: int = 0


class Sleep(Protocol):
    """Waiting, replaceable in tests."""

    async def __call__(self, seconds: float, /) -> None:
        """Wait."""
        ...


class Ingest:
    """Moves events from one source into one tenant of a store."""

    def __init__(
        self, source: EventSource, store: EventStreams, *, tenant: str, name: str, sleep: Sleep = asyncio.sleep
    ) -> None:
        """`name` tells dead letters of this source from others."""
        self._source, self._store, self._tenant, self._name, self._sleep = source, store, tenant, name, sleep
        self.counts = IngestCounts()

    async def step(self) -> int:
        """Read up to 500 messages, write them, acknowledge; return how many there were.

        A store that is away is waited for: nothing is acknowledged before it is written.
        """
        received = await self._source.read(MAX_EVENTS_PER_CALL)
        if received:
            await self._write(received)
            await self._source.acknowledge()
        return len(received)

    async def _write(self, received: Sequence[Received]) -> None:
        left = [r.entry.event for r in received if r.entry.event is not None]
        dead = [
            DeadLetter(f"{self._name}:{r.partition}:{r.entry.entry_id}", r.entry.reason or "", r.entry.payload)
            for r in received
            if r.entry.event is None
        ]
        while left or dead:
            try:
                left = await self._append(left)
                if dead:
                    await self._store.bury(self._tenant, dead)
                    self.counts.dead += len(dead)
                    dead = []
            except StoreError as error:
                log.warning("writing again in %.0f s: %s", _RETRY_S, error)
                await self._sleep(_RETRY_S)
                continue
            if left:
                await self._sleep(_RETRY_S)

    async def _append(self, events: Sequence[Event]) -> list[Event]:
        """Write events; return those whose bucket could not be written."""
        if not events:
            return []
        now_ms = time.time_ns() // 1_000_000
        statuses = await self._store.append(self._tenant, events, now_ms=now_ms, backlog=True)
        self.counts.accepted += statuses.count(EventStatus.accepted)
        self.counts.duplicate += statuses.count(EventStatus.duplicate)
        self.counts.repeat += statuses.count(EventStatus.repeat)
        return [e for e, status in zip(events, statuses, strict=True) if status == EventStatus.failed]
