"""The item-log port: changes of items, numbered, in one order for everybody.

The ingress appends; every replica that holds a release reads on from the position the release was built at. A change
is durable before it is acknowledged. `MemoryItemLog` is the shipped fake, `RedisItemLog` speaks to any Redis or Valkey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from models.items.change import ItemChange, Numbered
from models.store.calls import fcall
from models.store.checks import check_tenant
from models.store.port import StoreError
from models.store.redis_store import RedisStore, checked


class ItemLogFull(StoreError):
    """The log holds as many changes as it may; a new release must take them in first."""


class ItemLog(Protocol):
    """An append-only log of item changes per tenant. Errors as in `OnlineStore`."""

    async def append_item(self, tenant: str, change: ItemChange) -> int:
        """Append a change and return its sequence number, from 1 upwards; durable when this returns.

        Raises:
            ItemLogFull: a new release must be built and published first.
            StoreUnavailable: the store cannot be reached or cannot promise durability.
            StoreTimeout: no answer in time; the change may still take effect.
        """
        ...

    async def read_items(self, tenant: str, *, after: int, limit: int = 1000) -> Sequence[Numbered]:
        """Return up to `limit` changes with a sequence number above `after`, in order."""
        ...

    async def trim_items(self, tenant: str, *, up_to: int) -> None:
        """Drop the changes up to number `up_to`: releases that anybody may still serve know them."""
        ...

    async def continue_items(self, tenant: str, *, after: int) -> None:
        """Number the next change above `after`: in a new store, the log goes on where the release left the old one."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class MemoryItemLog:
    """An `ItemLog` in this process's memory."""

    def __init__(self, *, limit: int = 20_000) -> None:
        self._limit = limit
        self._changes: dict[str, list[ItemChange]] = {}
        self._first: dict[str, int] = {}  # number of the first change that is kept, less one

    async def append_item(self, tenant: str, change: ItemChange) -> int:
        """See `ItemLog.append_item`; nothing survives the process."""
        check_tenant(tenant)
        changes = self._changes.setdefault(tenant, [])
        if len(changes) >= self._limit:
            raise ItemLogFull(_FULL)
        changes.append(change)
        return self._first.get(tenant, 0) + len(changes)

    async def read_items(self, tenant: str, *, after: int, limit: int = 1000) -> Sequence[Numbered]:
        """See `ItemLog.read_items`."""
        check_tenant(tenant)
        first = self._first.get(tenant, 0)
        skipped = max(0, after - first)
        found = self._changes.get(tenant, [])[skipped : skipped + limit]
        return list(enumerate(found, start=first + skipped + 1))

    async def trim_items(self, tenant: str, *, up_to: int) -> None:
        """See `ItemLog.trim_items`."""
        changes, first = self._changes.get(tenant, []), self._first.get(tenant, 0)
        dropped = min(len(changes), max(0, up_to - first))
        del changes[:dropped]
        self._first[tenant] = first + dropped

    async def continue_items(self, tenant: str, *, after: int) -> None:
        """See `ItemLog.continue_items`."""
        if not self._changes.get(tenant):
            self._first[tenant] = max(after, self._first.get(tenant, 0))

    async def close(self) -> None:
        """See `ItemLog.close`; nothing to close."""


class RedisItemLog(RedisStore):
    """An `ItemLog` on a server: one stream per tenant whose entry ids are the sequence numbers."""

    def __init__(
        self,
        url: str,
        *,
        limit: int = 20_000,
        cluster: bool = False,
        connections: int = 4,
        write_timeout_s: float = 0.5,
        connect_timeout_s: float = 0.1,
    ) -> None:
        """`limit` bounds the number of changes that wait for a release to take them in."""
        super().__init__(
            url,
            cluster=cluster,
            connections=connections,
            write_timeout_s=write_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._limit = limit

    async def append_item(self, tenant: str, change: ItemChange) -> int:
        """See `ItemLog.append_item`."""
        check_tenant(tenant)
        log = _key(tenant)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            wait_ms = await self._confirm()
            call = fcall("rc_item_append", [log, log + ":last"], [self._limit, *change.to_bytes()])
            (reply,) = await self._call([(log, call)], wait_ms=wait_ms)
        sequence = int(checked(reply))
        if sequence == 0:
            raise ItemLogFull(_FULL)
        return sequence

    async def read_items(self, tenant: str, *, after: int, limit: int = 1000) -> Sequence[Numbered]:
        """See `ItemLog.read_items`."""
        check_tenant(tenant)
        log = _key(tenant)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            (reply,) = await self._call([(log, ("XRANGE", log, f"({after}-0", "+", "COUNT", limit))])
        return [_numbered(entry_id, fields) for entry_id, fields in checked(reply) or []]

    async def trim_items(self, tenant: str, *, up_to: int) -> None:
        """See `ItemLog.trim_items`."""
        check_tenant(tenant)
        log = _key(tenant)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            (reply,) = await self._call([(log, ("XTRIM", log, "MINID", f"{up_to + 1}-0"))])
        checked(reply)

    async def continue_items(self, tenant: str, *, after: int) -> None:
        """See `ItemLog.continue_items`."""
        check_tenant(tenant)
        log = _key(tenant)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            (reply,) = await self._call([(log, fcall("rc_item_floor", [log, log + ":last"], [after]))])
        checked(reply)


_FULL = "the item log is full: build and publish a release, which takes its changes in"


def _key(tenant: str) -> str:
    return f"{{{tenant}:items}}log"


def _numbered(entry_id: bytes, fields: object) -> Numbered:
    found = dict(fields) if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))  # type: ignore[index]
    return int(entry_id.split(b"-")[0]), ItemChange.from_bytes(found.get(b"d", b""), found.get(b"e", b""))
