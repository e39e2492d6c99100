"""The profile-store port: merging what a session did into a user who turned out to be behind it.

Session and user may live in different buckets, so no one step can touch both. What is read from the session is taken
over into the user's bucket atomically, and in such a way that doing it again changes nothing; only when that is durable
is the session forgotten, and only if no event reached it meanwhile. A crash at any point leaves a session that can be
linked again. Called by the ingress. `MemoryProfiles` is the shipped fake, `RedisProfiles` speaks to any Redis or
Valkey.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from models import declared
from models.declared import Declaration
from models.ids import bucket_of, is_valid_id
from models.store import codec
from models.store.calls import LINKED_KEYS, fcall, tag_of
from models.store.checks import SESSION_PREFIX, check_tenant
from models.store.memory import MemoryStore, Profile, Tenant
from models.store.port import OnlineStore
from models.store.redis_store import RedisStore, checked

LINK_ATTEMPTS = 3
"""How often a session is read again because events reached it while it was being linked."""


@dataclass(frozen=True, slots=True)
class Linked:
    """What a link did: whether the session was known, and how many of its recent events the user did not have."""

    known: bool
    events: int


class ProfileStore(OnlineStore, Protocol):
    """An online store that takes declarations, and whose profiles can be merged. Errors as in `OnlineStore`."""

    async def declare(self, tenant: str, owner: str, declaration: Declaration, *, now_ms: int) -> None:
        """Replace what a user or session declared of themselves; an empty declaration takes it back.

        Durable when this returns; a retry is harmless. It says nothing of taste that happened: no event, no stream,
        nobody becomes known for it. A session's lives as long as the session's profile.

        Raises:
            ValueError: an invalid id.
            StoreUnavailable: the store cannot be reached or cannot promise durability.
            StoreTimeout: no answer in time; what was sent may still take effect.
        """
        ...

    async def link(self, tenant: str, owner: str, session_owner: str, *, now_ms: int) -> Linked:
        """Take a session's events, seen items, search and declaration over into a user's profile; forget the session.

        Durable when this returns. A retry is harmless. The event streams are not told: their consumers counted the
        session's events when they happened. A session to which events keep coming is left in place with its own
        life time; linking it again takes only what is new. Of two searches, and of two declarations, the later stays.

        Raises:
            ValueError: an invalid id, or one of the wrong kind.
            StoreUnavailable: the store cannot be reached or cannot promise durability.
            StoreTimeout: no answer in time; what was sent may still take effect.
        """
        ...


def check_link(owner: str, session_owner: str) -> None:
    """Raise ValueError unless the first is the key of a user's profile and the second that of a session's."""
    if not is_valid_id(owner) or owner.startswith(SESSION_PREFIX):
        raise ValueError("the user to link to is not a valid user id")
    if not session_owner.startswith(SESSION_PREFIX) or not is_valid_id(session_owner.removeprefix(SESSION_PREFIX)):
        raise ValueError("the session to link is not a valid session")


def check_owner(owner: str) -> None:
    """Raise ValueError unless this is the key of a user's or a session's profile."""
    if not is_valid_id(owner.removeprefix(SESSION_PREFIX)):
        raise ValueError("the owner is not a valid id")


class RedisProfiles(RedisStore):
    """A `ProfileStore` on a server."""

    async def declare(self, tenant: str, owner: str, declaration: Declaration, *, now_ms: int) -> None:
        """See `ProfileStore.declare`."""
        check_tenant(tenant)
        check_owner(owner)
        tag = tag_of(tenant, bucket_of(owner, buckets=self._limits.buckets))
        life_ms = int(self._limits.session_s * 1000) if owner.startswith(SESSION_PREFIX) else 0
        call = fcall("rc_declare", [f"{tag}a:{owner}"], [declared.pack(declaration) if declaration else b"", life_ms])
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            wait_ms = await self._confirm()
            checked((await self._call([(tag, call)], wait_ms=wait_ms))[0])

    async def link(self, tenant: str, owner: str, session_owner: str, *, now_ms: int) -> Linked:
        """See `ProfileStore.link`."""
        check_tenant(tenant)
        check_link(owner, session_owner)
        user_tag, user_keys = self._profile_keys(tenant, owner)
        session_tag, session_keys = self._profile_keys(tenant, session_owner)
        limits, taken, known = self._limits, 0, False
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            wait_ms = await self._confirm()
            for _ in range(LINK_ATTEMPTS):
                peek = fcall("rc_peek", session_keys, [limits.seen_items], command="FCALL_RO")
                records, seen, events, intent, said = checked((await self._call([(session_tag, peek)]))[0])
                if not records and not seen and not intent and not said:
                    break
                known = True
                args: list[Any] = [now_ms, limits.recent_events, limits.seen_items, seen]
                args += [intent, round(limits.intent_s * 1000), said, *records]
                link = fcall("rc_link", user_keys, args)
                taken += int(checked((await self._call([(user_tag, link)], wait_ms=wait_ms))[0]))
                forget = fcall("rc_forget", session_keys, [events, intent, said])
                if checked((await self._call([(session_tag, forget)], wait_ms=wait_ms))[0]):
                    break
        return Linked(known, taken)

    def _profile_keys(self, tenant: str, owner: str) -> tuple[str, list[str | bytes]]:
        tag = tag_of(tenant, bucket_of(owner, buckets=self._limits.buckets))
        return tag, [f"{tag}{part}{owner}" for part in LINKED_KEYS]


class MemoryProfiles(MemoryStore):
    """A `ProfileStore` without a server."""

    async def declare(self, tenant: str, owner: str, declaration: Declaration, *, now_ms: int) -> None:
        """See `ProfileStore.declare`."""
        check_tenant(tenant)
        check_owner(owner)
        self._check_durable()
        self._now_ms = max(self._now_ms, now_ms)
        held = self._tenants.setdefault(tenant, Tenant()).declared
        held.pop(owner, None)
        if declaration and (kept := declared.unpack(declared.pack(declaration))) is not None:
            held[owner] = (kept, self._expiry(owner))

    async def link(self, tenant: str, owner: str, session_owner: str, *, now_ms: int) -> Linked:
        """See `ProfileStore.link`."""
        check_tenant(tenant)
        check_link(owner, session_owner)
        self._check_durable()
        self._now_ms = max(self._now_ms, now_ms)
        state = self._tenants.setdefault(tenant, Tenant())
        intent = self._intent(state, session_owner)
        if intent is not None:
            self._want(state, owner, *intent)
            del state.intents[session_owner]
        said = self._declared(state, session_owner)
        if (latest := declared.later(self._declared(state, owner), said)) is not None:
            state.declared[owner] = (latest, self._expiry(owner))
        state.declared.pop(session_owner, None)
        session = self._profile(state, session_owner)
        if session is None:
            return Linked(intent is not None or said is not None, 0)
        user = self._profile(state, owner) or state.profiles.setdefault(owner, Profile())
        held = Counter(codec.encode_record(e) for e in user.ring)
        missing = []
        for event in session.ring:
            record = codec.encode_record(event)
            if held[record]:
                held[record] -= 1
            else:
                missing.append(event)
        # Stable: at equal times the user's own events come first.
        user.ring[:] = sorted([*user.ring, *missing], key=lambda e: e.timestamp_ms)[-self._limits.recent_events :]
        for seen in session.seen:
            user.seen.setdefault(seen)
            if len(user.seen) > self._limits.seen_items:
                del user.seen[next(iter(user.seen))]
        del state.profiles[session_owner]
        return Linked(True, len(missing))
