"""Where events come from: a port with `read` and `acknowledge`, and its implementation on the streams of a store.

The other implementation, for Kafka, is in `pipelines`. Called by the event-log writer and by `ingest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from models.ids import BUCKETS
from models.store.streams import Commit, EventStreams, Group, StreamEntry, Taken

_ALL = 10_000
"""More than a group ever has taken and not acknowledged in one bucket."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message: what it says, and where it stood (a bucket or partition, and the entry)."""

    partition: int
    entry: StreamEntry


class EventSource(Protocol):
    """Events to be read at least once. Instances belong to one event loop."""

    async def read(self, count: int) -> list[Received]:
        """Return up to about `count` messages not yet read, oldest first per partition; empty when there are none.

        After a crash, what was read and not acknowledged comes again first. A message that is no event has a reason.
        """
        ...

    async def acknowledge(self) -> None:
        """Say that everything `read` returned so far was written; it never comes again."""
        ...


class StreamSource:
    """An `EventSource` on the streams that the events endpoint writes."""

    def __init__(self, streams: EventStreams, *, tenant: str, group: Group = Group.log, buckets: int = BUCKETS) -> None:
        self._streams, self._tenant, self._group = streams, tenant, group
        self._buckets = range(buckets)
        self._again = True
        self._open: list[Taken] = []

    async def read(self, count: int) -> list[Received]:
        """See `EventSource.read`. Raises StoreError."""
        if self._again:
            if self._open:  # what a crash left behind is acknowledged before anything new is read
                return []
            self._open = await self._take(_ALL, again=True)
            self._again = bool(self._open)
        taken = self._open if self._again else await self._take(max(1, count // len(self._buckets)))
        if not self._again:
            self._open += taken
        return [Received(t.bucket, entry) for t in taken for entry in t.entries]

    async def _take(self, count: int, *, again: bool = False) -> list[Taken]:
        taken = await self._streams.take(self._tenant, self._buckets, group=self._group, count=count, again=again)
        return [t for t in taken if t.entries]

    async def acknowledge(self) -> None:
        """See `EventSource.acknowledge`. Raises StoreError."""
        by_bucket: dict[int, Commit] = {}
        for taken in self._open:
            before = by_bucket.get(taken.bucket)
            done = [*(before.done if before else ()), *(e.entry_id for e in taken.entries)]
            position = before.position if before else taken.position
            by_bucket[taken.bucket] = Commit(bucket=taken.bucket, position=position, done=done)
        landed = await self._streams.commit(self._tenant, list(by_bucket.values()), group=self._group)
        self._open = []
        # Another reader of the group was faster: look at what is left over.
        self._again = self._again or not all(landed)
