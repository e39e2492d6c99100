"""The event-stream port: how a consumer reads the events of a store, and commits what it made of them.

Every bucket of a tenant has one stream. A consumer group takes entries (at least once), folds them into fields of its
own state, and commits fields and position in one step (effect exactly once, in the order of the stream). Called by the
event consumer in `pipelines`; knows nothing of what the fields hold. `MemoryEventStreams` is the shipped fake,
`RedisEventStreams` speaks to any Redis or Valkey.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from models.events import POSITIVE_TYPES, Event
from models.store.port import OnlineStore

DEAD_LETTERS = 1_000
"""How many dead letters a bucket keeps, approximately; the oldest go first."""


class Group(StrEnum):
    """Who reads the streams. The names are part of keys."""

    statistics = "stat"
    log = "log"


@dataclass(frozen=True, slots=True)
class Previous:
    """The item a user took just before, and when."""

    item_id: str
    timestamp_ms: int


def previous_of(event: Event) -> Previous | None:
    """Return what `event` is to the one after it: nothing, where it took no item."""
    if event.item_id is None or event.type not in POSITIVE_TYPES:
        return None
    return Previous(event.item_id, event.timestamp_ms)


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry of a stream. `entry_id` is `<ms of arrival>-<number>`.

    `event` is None where the payload cannot be applied; `reason` says why. `new`: the user had not taken the item
    before, imported history included. `previous`: what the user's newest event was when this one arrived.
    """

    entry_id: str
    event: Event | None
    new: bool = False
    previous: Previous | None = None
    reason: str | None = None
    payload: bytes = b""

    @property
    def arrived_ms(self) -> int:
        """When the store took it."""
        return int(self.entry_id.split("-")[0])


@dataclass(frozen=True, slots=True)
class Taken:
    """Entries of one bucket, oldest first, and the group's position there. `failed` says why there are none."""

    bucket: int
    position: str
    entries: tuple[StreamEntry, ...]
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became of entries of one bucket.

    `fields` are set in the group's state (an empty value removes). `dead` entries go to the dead letters with their
    reason. `done` are all entry ids, oldest first; the position moves to the last one.
    """

    bucket: int
    position: str
    """The position the work started from."""
    done: Sequence[str] = ()
    fields: Mapping[str, bytes] = field(default_factory=dict)
    dead: Sequence[StreamEntry] = ()

    @property
    def new_position(self) -> str:
        """Where the position moves to."""
        return self.done[-1] if self.done else self.position


@dataclass(frozen=True, slots=True)
class StreamLag:
    """How far a group is behind: entries (at most), and how long the oldest of them has waited, in ms."""

    entries: int
    oldest_ms: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message nobody could apply, and why. The payload may name a user: never log it."""

    source: str
    reason: str
    payload: bytes


class EventStreams(OnlineStore, Protocol):
    """An online store whose streams can be consumed. Errors as in `OnlineStore`."""

    async def take(
        self, tenant: str, buckets: Iterable[int], *, group: Group, count: int, again: bool = False
    ) -> list[Taken]:
        """Take up to `count` entries of each bucket; only buckets with entries, or that failed, are returned.

        With `again`, entries that were taken before and never committed, by whomever: what a crash left behind.
        Positions are strings of the store; an entry at or before the position has had its effect.

        Raises:
            StoreUnavailable, StoreTimeout: no bucket could be read.
        """
        ...

    async def read_fields(
        self, tenant: str, wanted: Mapping[int, Sequence[str]], *, group: Group
    ) -> dict[int, dict[str, bytes]]:
        """Return the fields of a group's state, by bucket; what does not exist is left out."""
        ...

    async def read_state(
        self, tenant: str, buckets: Iterable[int], *, group: Group
    ) -> dict[int, tuple[str, dict[str, bytes]]]:
        """Return a group's position and all its fields, as of one moment per bucket; empty states are left out."""
        ...

    async def commit(self, tenant: str, commits: Sequence[Commit], *, group: Group) -> list[bool]:
        """Apply each commit atomically: fields, dead letters, position and acknowledgement.

        False, without effect, where the position moved meanwhile or an older entry is taken and not committed: take
        again. Two consumers of one group therefore only cost each other time.
        """
        ...

    async def lag(self, tenant: str, *, group: Group) -> StreamLag:
        """Return how far a group is behind, over all buckets."""
        ...

    async def bury(self, tenant: str, letters: Sequence[DeadLetter]) -> None:
        """Keep messages that never became an event of a stream (bucket 0 holds them)."""
        ...

    async def dead_letters(self, tenant: str, *, limit: int = 100) -> list[DeadLetter]:
        """Return the newest dead letters, newest first within a bucket."""
        ...

    async def publish_statistics(self, tenant: str, body: bytes) -> int:
        """Make `body` the current statistics snapshot; return its version, which rises by one."""
        ...

    async def read_statistics(self, tenant: str, *, newer_than: int = 0) -> tuple[bytes, int] | None:
        """Return the current snapshot and its version, or None unless its version is above `newer_than`."""
        ...
