"""The online-store port: profiles, recent events and seen sets of users, event streams, the release pointer.

Called by the feature fetcher, the ingress (events) and whoever publishes or follows releases. Knows nothing of
servers: `MemoryStore` is the shipped fake, `RedisStore` speaks to any Redis or Valkey.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from models.events import Event, EventType
from models.features import RECENT_EVENTS, UserFeatures
from models.ids import BUCKETS

SCHEMA_VERSION = 1
"""Version of every stored value; fixed in the store at its first start."""

MAX_EVENTS_PER_CALL = 500
STREAM_ONLY = frozenset({EventType.impression, EventType.search})
"""Types that are recorded in the stream but say nothing about taste: not in the ring, not in the seen set."""

Durability = Literal["fsync", "none"]


class StoreError(Exception):
    """Anything the online store could not do. One positional message, so that it survives pickling."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, refuses to write, or cannot promise what was asked for."""


class CommandRefused(StoreUnavailable):
    """The server answered, and the answer was no (not permitted, unknown, out of memory, wrong type)."""


class FunctionMissing(CommandRefused):
    """A server lost our functions (restart without data, failover): they are loaded again, callers never see this."""


class StoreTimeout(StoreError):
    """The store did not answer in time. What was sent may still take effect; a retry is harmless."""


class StoreMismatch(StoreError):
    """The store was created with another bucket count or schema version."""


class EventStatus(StrEnum):
    """What became of one event."""

    accepted = "accepted"
    """Stored, and durable before the call returned."""
    duplicate = "duplicate"
    """An event with this id and owner was stored within the dedupe window; nothing changed."""
    repeat = "repeat"
    """The owner's newest event says the same, a moment before or after; nothing changed, and the id is remembered."""
    limited = "limited"
    """Its owner had too many events in this second; nothing changed, and sending it again later is worth it."""
    failed = "failed"
    """Its bucket could not be written while others could: the sender should send it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds of what is kept; the same for every implementation."""

    buckets: int = BUCKETS
    """Buckets of a tenant; fixed for the life of a store."""
    recent_events: int = RECENT_EVENTS
    """Length of a user's ring of recent events."""
    seen_items: int = 20_000
    """Distinct items in a user's seen set; the one seen first goes first."""
    dedupe_s: float = 7 * 86_400
    """How long an event id is remembered."""
    stream_events: int = 40_000
    """Events kept in the stream of a bucket, approximately; older ones are dropped."""
    repeat_window_s: float = 2.0
    """The owner's newest event again (item, type, value) within this time, before or after, is a repeat; 0: never."""
    events_per_owner_s: int = MAX_EVENTS_PER_CALL
    """New events of one owner in one second; 0: any number. The default lets one full call of one owner through."""
    intent_s: float = 30 * 60
    """How long a search is kept as what its owner is after; 0: not at all."""
    session_s: float = 30 * 86_400
    """How long the profile of an anonymous session outlives its last event."""


class OnlineStore(Protocol):
    """What is known of users now. All methods are coroutines; instances belong to one event loop."""

    async def append(
        self,
        tenant: str,
        events: Sequence[Event],
        *,
        now_ms: int,
        to_stream: bool = True,
        backlog: bool = False,
    ) -> list[EventStatus]:
        """Store events and update the profiles they belong to; durable when this returns.

        One atomic step per bucket. A profile is ordered by the events' time; equal times keep their order of arrival.
        The result has one status per event, in order. With `to_stream` False only profiles change, and nothing is a
        repeat or limited: for history that the statistics of a release already count. With `backlog` no owner is
        limited: for sources that waited and come all at once. Seconds are those of `now_ms`; where several callers'
        clocks differ, the newest second counts. Of the searches that bring an intent, an owner keeps that of the newest
        one by time, until it is `intent_s` old; the text never comes here.

        Raises:
            ValueError: more than `MAX_EVENTS_PER_CALL` events, an invalid id, or an event without the item it needs.
            StoreUnavailable: no bucket could be written, or the store cannot promise durability.
            StoreTimeout: no bucket answered in time.
        """
        ...

    async def fetch(
        self, tenant: str, owner: str | None, session_owner: str | None, *, timeout_s: float
    ) -> UserFeatures:
        """Return what is known of a user and a session, merged by time, in one round trip.

        Unknown to the store is not an error: `known` is False then.

        Raises:
            StoreUnavailable: the store cannot be reached.
            StoreTimeout: no answer within `timeout_s`.
        """
        ...

    async def read_release(self, tenant: str) -> tuple[str | None, int]:
        """Return the current release as JSON text and its epoch; (None, 0) before the first."""
        ...

    async def move_release(self, tenant: str, text: str, *, expected_epoch: int) -> bool:
        """Make `text` the current release if the epoch still is `expected_epoch`, which it raises by one.

        Returns False, without effect, when somebody else moved it first.
        """
        ...

    async def durability(self) -> Durability:
        """Return `fsync` when an acknowledged write survives the death of server and machine, else `none`."""
        ...

    async def ping(self) -> None:
        """Raise `StoreUnavailable` or `StoreTimeout` unless the store answers."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
