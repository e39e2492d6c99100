"""`RedisStore`: the online store on any Redis (7.0 or newer) or Valkey, single or in cluster mode.

One server-side function call per bucket for writes, one round trip for reads (`functions.lua`). URLs may carry TLS
(`rediss://`) and an ACL user. Called through the `OnlineStore` port. Knows nothing of HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from models.events import Event
from models.features import ANONYMOUS, UserFeatures
from models.ids import bucket_of
from models.store import codec
from models.store.calls import FETCHED_KEYS, STATUSES, append_call, fcall, library, tag_of
from models.store.checks import check_events, check_tenant, merge_features
from models.store.port import (
    SCHEMA_VERSION,
    CommandRefused,
    Durability,
    EventStatus,
    FunctionMissing,
    StoreError,
    StoreLimits,
    StoreMismatch,
    StoreTimeout,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from models.store.servers import Command, Result, Servers

META_KEY = "raycommend:meta"
_PROBE_AGAIN_S, _PROBE_SOON_S = 30.0, 1.0
_Confirmation = Literal["always", "waitaof", "none"]


class RedisStore:
    """An `OnlineStore` on a server. Connects at the first call; belongs to one event loop.

    Attributes:
        skipped_records: how many stored values could not be read and were left out since the start.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool = False,
        require_durable: bool = True,
        limits: StoreLimits | None = None,
        write_timeout_s: float = 0.5,
        connect_timeout_s: float = 0.1,
        connections: int = 32,
    ) -> None:
        from models.store.servers import ClusterServers, SingleServer  # here, because the client library loads slowly

        kind = ClusterServers if cluster else SingleServer
        self._servers: Servers = kind(
            url, timeout_s=write_timeout_s, connect_timeout_s=connect_timeout_s, connections=connections
        )
        self._require_durable = require_durable
        self._limits = limits or StoreLimits()
        self._write_timeout_s = write_timeout_s
        self._slots = asyncio.Semaphore(connections)
        self._meta_checked = False
        self._confirmations: dict[str, _Confirmation] = {}
        self._probe_at = 0.0
        self.skipped_records = 0

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
        if not events:
            return []
        groups: dict[int, list[int]] = {}
        for i, event in enumerate(events):
            groups.setdefault(bucket_of(event.owner, buckets=self._limits.buckets), []).append(i)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            wait_ms = await self._confirm()
            call = partial(append_call, now_ms=now_ms, limits=self._limits, to_stream=to_stream, backlog=backlog)
            calls = [call(tag_of(tenant, bucket), [events[i] for i in group]) for bucket, group in groups.items()]
            replies = await self._call(calls, wait_ms=wait_ms)
        errors = [reply for reply in replies if isinstance(reply, StoreError)]
        if len(errors) == len(replies):
            raise errors[0]
        statuses = [EventStatus.failed] * len(events)
        for group, reply in zip(groups.values(), replies, strict=True):
            if not isinstance(reply, StoreError):
                for i, code in zip(group, reply, strict=True):
                    statuses[i] = STATUSES[code]
        return statuses

    async def fetch(
        self, tenant: str, owner: str | None, session_owner: str | None, *, timeout_s: float
    ) -> UserFeatures:
        """See `OnlineStore.fetch`."""
        check_tenant(tenant)
        owners = [name for name in (owner, session_owner) if name]
        if not owners:
            return ANONYMOUS
        calls = []
        for name in owners:
            tag = tag_of(tenant, bucket_of(name, buckets=self._limits.buckets))
            keys: list[str | bytes] = [f"{tag}{part}{name}" for part in FETCHED_KEYS]
            calls.append((tag, fcall("rc_fetch", keys, [self._limits.seen_items], command="FCALL_RO")))
        async with self._bound(timeout_s):
            await self._check_meta()
            replies = await self._call(calls)
        found = [self._decoded(checked(reply)) for reply in replies]
        return found[0] if len(found) == 1 else merge_features(*found, limit=self._limits.recent_events)

    def _decoded(self, reply: Any) -> UserFeatures:
        features, skipped = codec.decode_features(*reply)
        self.skipped_records += skipped
        return features

    async def read_release(self, tenant: str) -> tuple[str | None, int]:
        """See `OnlineStore.read_release`."""
        check_tenant(tenant)
        key = f"{{{tenant}}}:release"
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            (reply,) = await self._call([(key, ("HMGET", key, "text", "epoch"))])
        text, epoch = checked(reply)
        return (None, 0) if text is None else (text.decode(), int(epoch))

    async def move_release(self, tenant: str, text: str, *, expected_epoch: int) -> bool:
        """See `OnlineStore.move_release`."""
        check_tenant(tenant)
        key = f"{{{tenant}}}:release"
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            wait_ms = await self._confirm()
            call = fcall("rc_move_release", [key], [text, expected_epoch])
            (reply,) = await self._call([(key, call)], wait_ms=wait_ms)
        return bool(checked(reply))

    async def durability(self) -> Durability:
        """See `OnlineStore.durability`."""
        async with self._bound(self._write_timeout_s):
            return "none" if "none" in await self._confirmation() else "fsync"

    async def ping(self) -> None:
        """See `OnlineStore.ping`."""
        async with self._bound(self._write_timeout_s):
            for reply in (await self._servers.everywhere(("PING",))).values():
                checked(reply)
            await self._check_meta()

    async def close(self) -> None:
        """See `OnlineStore.close`."""
        await self._servers.close()

    @asynccontextmanager
    async def _bound(self, timeout_s: float) -> AsyncIterator[None]:
        """Hold a place among the connections until the end of a time: what takes longer is a `StoreTimeout`."""
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                yield
        except TimeoutError:
            raise StoreTimeout(f"the store did not answer within {timeout_s * 1000:.0f} ms") from None

    async def _call(self, calls: Sequence[tuple[str, Command]], *, wait_ms: int | None = None) -> list[Result]:
        """Run calls; where a server lost the functions (restart, failover), load them and repeat those calls."""
        replies = await self._servers.run(calls, wait_ms=wait_ms)
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, FunctionMissing)]
        if missing:
            loaded = (await self._servers.everywhere(("FUNCTION", "LOAD", "REPLACE", library()[0]))).values()
            failures = [reply for reply in loaded if isinstance(reply, StoreError)]
            if len(failures) == len(loaded):
                raise failures[0]
            again = await self._servers.run([calls[i] for i in missing], wait_ms=wait_ms)
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return replies

    async def _check_meta(self) -> None:
        if self._meta_checked:
            return
        wanted = {"buckets": self._limits.buckets, "schema version": SCHEMA_VERSION}
        (reply,) = await self._call([(META_KEY, fcall("rc_fix_meta", [META_KEY], list(wanted.values())))])
        for (name, mine), fixed in zip(wanted.items(), checked(reply), strict=True):
            if int(fixed) != mine:
                raise StoreMismatch(
                    f"this store was created with {name} {int(fixed)}, this process wants {mine}: "
                    "use the matching settings and release, or an empty store"
                )
        self._meta_checked = True

    async def _confirm(self) -> int | None:
        """Return how long to wait for the append-only file, in ms, or None where the reply itself says enough."""
        if not self._require_durable:
            return None
        modes = await self._confirmation()
        if "none" in modes:
            raise StoreUnavailable(
                "the store cannot promise durable events: set 'appendonly yes' and 'appendfsync always' "
                "(or any append-only file where WAITAOF exists), or accept loss with require_durable=False"
            )
        return int(self._write_timeout_s * 1000) if "waitaof" in modes else None

    async def _confirmation(self) -> set[_Confirmation]:
        """Return how the primaries confirm; asks them again from time to time, and soon after one did not answer."""
        known = await self._servers.names() <= self._confirmations.keys()
        now = time.monotonic()
        if now >= self._probe_at or not self._confirmations:
            self._probe_at = now + _PROBE_AGAIN_S
            configs = await self._servers.everywhere(("CONFIG", "GET", "append*"))
            waits = await self._servers.everywhere(("WAITAOF", 1, 0, 1))
            verdicts = {name: _judged(config, waits.get(name)) for name, config in configs.items()}
            before = self._confirmations  # what a primary said before holds while it does not answer
            self._confirmations = {name: v for name in verdicts if (v := verdicts[name] or before.get(name))}
            if not self._confirmations:
                raise next(config for config in configs.values() if isinstance(config, StoreError))
        elif not known:
            self._probe_at = min(self._probe_at, now + _PROBE_SOON_S)
        return set(self._confirmations.values())


def _judged(config: Result, waited: Result) -> _Confirmation | None:
    """Judge one primary; None where it did not answer.

    Where CONFIG is denied (managed services), what WAITAOF says has to do: it refuses without an append-only file.
    """
    if isinstance(config, StoreError):
        if not isinstance(config, CommandRefused):
            return None
    else:
        items = list(config.items()) if isinstance(config, dict) else list(zip(config[::2], config[1::2], strict=True))
        settings = {_str(name): _str(value) for name, value in items}
        if settings.get("appendonly") != "yes":
            return "none"
        if settings.get("appendfsync") == "always":
            return "always"
    return "none" if isinstance(waited, StoreError) or waited is None else "waitaof"


def _str(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def checked(reply: Result) -> Any:
    """Return a reply, or raise the error it is."""
    if isinstance(reply, StoreError):
        raise reply
    return reply
