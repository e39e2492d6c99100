"""`MemoryStore`: the online store in this process's memory, the fake that ships beside the port.

Same semantics as `RedisStore`, proven by one contract suite; nothing survives the process. Called by tests, the
evaluation and single-process use. Knows nothing of servers.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from models.declared import Declaration
from models.events import Event
from models.features import ANONYMOUS, UserFeatures
from models.ids import bucket_of, hash64
from models.intent import packed_tag, unpack
from models.store.checks import SESSION_PREFIX, check_events, check_tenant, merge_features
from models.store.port import STREAM_ONLY, Durability, EventStatus, StoreLimits, StoreUnavailable
from models.store.streams import StreamEntry, previous_of


@dataclass(slots=True)
class Profile:
    """What is kept of one owner."""

    ring: list[Event] = field(default_factory=list)
    seen: dict[int, None] = field(default_factory=dict)  # insertion order = order of first sight
    expires_ms: float = float("inf")


@dataclass(slots=True)
class Tenant:
    """Everything a tenant has here. `streams` holds one list of entries per bucket, oldest first."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    once: dict[tuple[str, str], float] = field(default_factory=dict)  # (owner, event id) -> expiry, oldest first
    streams: dict[int, list[StreamEntry]] = field(default_factory=dict)
    second: int = 0
    intents: dict[str, tuple[bytes, int]] = field(default_factory=dict)  # by owner: the vector, its time
    declared: dict[str, tuple[Declaration, float]] = field(default_factory=dict)  # by owner, with its expiry
    counts: dict[str, int] = field(default_factory=dict)  # new events by owner, in that second
    arrived: int = 0
    release: tuple[str | None, int] = (None, 0)


class MemoryStore:
    """An `OnlineStore` without a server.

    Time is the newest `now_ms` it was told. `durability` is what it claims: tests of callers may let it claim `fsync`.
    """

    def __init__(
        self,
        *,
        limits: StoreLimits | None = None,
        durability: Durability = "none",
        require_durable: bool = False,
    ) -> None:
        self._limits = limits or StoreLimits()
        self._durability = durability
        self._require_durable = require_durable
        self._tenants: dict[str, Tenant] = {}
        self._now_ms = 0

    async def append(
        self,
        tenant: str,
        events: Sequence[Event],
        *,
        now_ms: int,
        to_stream: bool = True,
        backlog: bool = False,
    ) -> list[EventStatus]:
        """See `OnlineStore.append`."""
        check_tenant(tenant)
        check_events(events)
        self._check_durable()
        self._now_ms = max(self._now_ms, now_ms)
        state = self._tenants.setdefault(tenant, Tenant())
        if state.second != self._now_ms // 1000:
            state.second, state.counts = self._now_ms // 1000, {}
        limit = self._limits.events_per_owner_s if to_stream and not backlog else 0
        return [self._apply(state, event, to_stream, limit) for event in events]

    def _check_durable(self) -> None:
        if self._require_durable and self._durability == "none":
            raise StoreUnavailable(
                "events in memory are lost with the process: pass require_durable=False to accept that"
            )

    def _apply(self, state: Tenant, event: Event, to_stream: bool, limit: int) -> EventStatus:
        once = (event.owner, event.event_id)
        if state.once.get(once, 0) > self._now_ms:
            return EventStatus.duplicate
        if limit and state.counts.get(event.owner, 0) >= limit:
            return EventStatus.limited
        if limit:
            state.counts[event.owner] = state.counts.get(event.owner, 0) + 1
        state.once[once] = self._now_ms + self._limits.dedupe_s * 1000
        if to_stream and self._repeats(state, event):
            return EventStatus.repeat
        if to_stream:
            stream = state.streams.setdefault(bucket_of(event.owner, buckets=self._limits.buckets), [])
            stream.append(self._entry(state, event))
            del stream[: -self._limits.stream_events]
        if event.type not in STREAM_ONLY:
            self._take(state, event)
        if event.intent is not None:
            self._want(state, event.owner, event.intent, min(event.timestamp_ms, self._now_ms))
        return EventStatus.accepted

    def _repeats(self, state: Tenant, event: Event) -> bool:
        """Whether the owner's newest event says the same, a moment before or after."""
        profile = self._profile(state, event.owner)
        window_ms = round(self._limits.repeat_window_s * 1000)
        if event.type in STREAM_ONLY or profile is None or not profile.ring or not window_ms:
            return False
        newest = profile.ring[-1]
        same = (event.item_id, event.type, event.value) == (newest.item_id, newest.type, newest.value)
        return same and abs(event.timestamp_ms - newest.timestamp_ms) <= window_ms

    def _entry(self, state: Tenant, event: Event) -> StreamEntry:
        """Return the stream entry of an event that the profile does not hold yet."""
        state.arrived += 1
        entry_id = f"{self._now_ms}-{state.arrived}"
        event = replace(event, intent=None)
        if event.type in STREAM_ONLY:
            return StreamEntry(entry_id, event)
        profile = self._profile(state, event.owner) or Profile()
        new, newest = hash64(event.item_id or "") not in profile.seen, profile.ring[-1] if profile.ring else None
        return StreamEntry(entry_id, event, new=new, previous=None if newest is None else previous_of(newest))

    def _take(self, state: Tenant, event: Event) -> None:
        profile = self._profile(state, event.owner)
        if profile is None:
            profile = state.profiles[event.owner] = Profile()
        insort(profile.ring, event, key=lambda e: e.timestamp_ms)
        del profile.ring[: -self._limits.recent_events]
        profile.seen.setdefault(hash64(event.item_id or ""))
        if len(profile.seen) > self._limits.seen_items:
            del profile.seen[next(iter(profile.seen))]
        if event.owner.startswith(SESSION_PREFIX):
            profile.expires_ms = self._expiry(event.owner)
            if (said := self._declared(state, event.owner)) is not None:
                state.declared[event.owner] = (said, profile.expires_ms)

    def _want(self, state: Tenant, owner: str, vector: bytes, time_ms: int) -> None:
        held = self._intent(state, owner)
        if held is None or held[1] <= time_ms:
            state.intents[owner] = (vector, time_ms)

    def _intent(self, state: Tenant, owner: str) -> tuple[bytes, int] | None:
        held = state.intents.get(owner)
        alive = held is not None and held[1] + self._limits.intent_s * 1000 > self._now_ms
        return held if alive else None

    def _expiry(self, owner: str) -> float:
        session = owner.startswith(SESSION_PREFIX)
        return self._now_ms + self._limits.session_s * 1000 if session else float("inf")

    def _declared(self, state: Tenant, owner: str) -> Declaration | None:
        said, expires_ms = state.declared.get(owner, (None, 0.0))
        return said if expires_ms > self._now_ms else None

    def _profile(self, state: Tenant, owner: str) -> Profile | None:
        profile = state.profiles.get(owner)
        return profile if profile is not None and profile.expires_ms > self._now_ms else None

    async def fetch(
        self, tenant: str, owner: str | None, session_owner: str | None, *, timeout_s: float
    ) -> UserFeatures:
        """See `OnlineStore.fetch`."""
        check_tenant(tenant)
        state = self._tenants.get(tenant, Tenant())
        user, session = (self._features(state, name) for name in (owner, session_owner))
        return merge_features(user, session, limit=self._limits.recent_events)

    def _features(self, state: Tenant, owner: str | None) -> UserFeatures:
        profile = self._profile(state, owner) if owner else None
        packed = self._intent(state, owner) if owner else None
        data, intent_ms = packed or (b"", 0)
        vector, tag = unpack(data), packed_tag(data)
        said = self._declared(state, owner) if owner else None
        if profile is None:
            stranger = vector is None and said is None
            if stranger:
                return ANONYMOUS
            return UserFeatures(intent=vector, intent_ms=intent_ms, intent_tag=tag, declared=said)
        ring = profile.ring
        return UserFeatures(
            intent=vector,
            intent_ms=intent_ms,
            intent_tag=tag,
            declared=said,
            item_ids=tuple(e.item_id or "" for e in ring),
            types=np.array([e.type for e in ring], np.uint8),
            values=np.array([e.value for e in ring], np.float32),
            timestamps_ms=np.array([e.timestamp_ms for e in ring], np.int64),
            seen=np.unique(np.fromiter(profile.seen, np.uint64)),
            known=True,
        )

    async def read_release(self, tenant: str) -> tuple[str | None, int]:
        """See `OnlineStore.read_release`."""
        check_tenant(tenant)
        return self._tenants.get(tenant, Tenant()).release

    async def move_release(self, tenant: str, text: str, *, expected_epoch: int) -> bool:
        """See `OnlineStore.move_release`."""
        check_tenant(tenant)
        state = self._tenants.setdefault(tenant, Tenant())
        if state.release[1] != expected_epoch:
            return False
        state.release = (text, expected_epoch + 1)
        return True

    async def durability(self) -> Durability:
        """See `OnlineStore.durability`."""
        return self._durability

    async def ping(self) -> None:
        """See `OnlineStore.ping`; always succeeds."""

    async def close(self) -> None:
        """See `OnlineStore.close`; nothing to close."""
