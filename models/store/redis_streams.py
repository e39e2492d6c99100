"""`RedisEventStreams`: the event-stream port on any Redis or Valkey, on top of `RedisStore`.

One server-side function call per bucket, all buckets of a node in one round trip. Keys of a bucket `{tenant:b}`: stream
`ev`, state of a group `stat` or `log`, dead letters `dead`. Called by the event consumer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from models.store import codec
from models.store.calls import fcall, tag_of
from models.store.checks import check_tenant
from models.store.port import StoreError
from models.store.redis_store import RedisStore, checked
from models.store.streams import (
    DEAD_LETTERS,
    Commit,
    DeadLetter,
    Group,
    StreamLag,
    Taken,
)

_CONSUMER = "consumer"
"""One name for all: whoever comes after a crash finds what the one before had taken."""


class RedisEventStreams(RedisStore):
    """An `EventStreams` on a server."""

    async def take(
        self, tenant: str, buckets: Iterable[int], *, group: Group, count: int, again: bool = False
    ) -> list[Taken]:
        """See `EventStreams.take`."""
        args = [group, _CONSUMER, count, "0" if again else ">"]
        replies = await self._per_bucket(tenant, buckets, lambda tag: fcall("rc_take", [tag + "ev", tag + group], args))
        taken = []
        for bucket, reply in replies.items():
            if isinstance(reply, StoreError):
                taken.append(Taken(bucket, "0-0", (), failed=str(reply)))
            elif reply[1]:
                entries = tuple(codec.decode_entry(entry_id, fields) for entry_id, fields in reply[1])
                taken.append(Taken(bucket, reply[0].decode(), entries))
        return taken

    async def read_fields(
        self, tenant: str, wanted: Mapping[int, Sequence[str]], *, group: Group
    ) -> dict[int, dict[str, bytes]]:
        """See `EventStreams.read_fields`."""
        check_tenant(tenant)
        asked = {bucket: names for bucket, names in wanted.items() if names}
        keys = {bucket: tag_of(tenant, bucket) + group for bucket in asked}
        replies = await self._all([(keys[b], ("HMGET", keys[b], *names)) for b, names in asked.items()])
        return {
            bucket: {n: v for n, v in zip(names, checked(reply), strict=True) if v is not None}
            for (bucket, names), reply in zip(asked.items(), replies, strict=True)
        }

    async def read_state(
        self, tenant: str, buckets: Iterable[int], *, group: Group
    ) -> dict[int, tuple[str, dict[str, bytes]]]:
        """See `EventStreams.read_state`."""
        replies = await self._per_bucket(tenant, buckets, lambda tag: ("HGETALL", tag + group))
        found = {}
        for bucket, reply in replies.items():
            state = _mapping(checked(reply))
            if state:
                position = state.pop(b"=position", b"0-0").decode()
                state.pop(b"=v", None)
                found[bucket] = (position, {name.decode(): value for name, value in state.items()})
        return found

    async def commit(self, tenant: str, commits: Sequence[Commit], *, group: Group) -> list[bool]:
        """See `EventStreams.commit`."""
        check_tenant(tenant)
        replies = await self._all([_commit_call(tag_of(tenant, c.bucket), c, group) for c in commits])
        return [bool(checked(reply)) for reply in replies]

    async def lag(self, tenant: str, *, group: Group) -> StreamLag:
        """See `EventStreams.lag`."""

        def ask(tag: str) -> Any:
            return fcall("rc_lag", [tag + "ev", tag + group], [group], command="FCALL_RO")

        replies = [checked(r) for r in (await self._per_bucket(tenant, range(self._limits.buckets), ask)).values()]
        return StreamLag(sum(int(r[0]) for r in replies), max(int(r[1]) for r in replies))

    async def bury(self, tenant: str, letters: Sequence[DeadLetter]) -> None:
        """See `EventStreams.bury`."""
        check_tenant(tenant)
        key = tag_of(tenant, 0) + "dead"
        head = ("XADD", key, "MAXLEN", "~", DEAD_LETTERS, "*")
        for reply in await self._all(
            [(key, (*head, "id", one.source, "why", one.reason, "d", one.payload)) for one in letters]
        ):
            checked(reply)

    async def dead_letters(self, tenant: str, *, limit: int = 100) -> list[DeadLetter]:
        """See `EventStreams.dead_letters`."""
        replies = await self._per_bucket(
            tenant, range(self._limits.buckets), lambda tag: ("XREVRANGE", tag + "dead", "+", "-", "COUNT", limit)
        )
        fields = [_mapping(entry[1]) for reply in replies.values() for entry in checked(reply)]
        return [DeadLetter(f[b"id"].decode(), f[b"why"].decode(), f[b"d"]) for f in fields][:limit]

    async def publish_statistics(self, tenant: str, body: bytes) -> int:
        """See `EventStreams.publish_statistics`."""
        check_tenant(tenant)
        key = f"{{{tenant}}}:statistics"
        (reply,) = await self._all([(key, fcall("rc_publish", [key], [body]))])
        return int(checked(reply))

    async def read_statistics(self, tenant: str, *, newer_than: int = 0) -> tuple[bytes, int] | None:
        """See `EventStreams.read_statistics`."""
        check_tenant(tenant)
        key = f"{{{tenant}}}:statistics"
        (reply,) = await self._all([(key, ("HGET", key, "version"))])
        # The body is large: it crosses the wire only when it is new.
        if int(checked(reply) or 0) <= newer_than:
            return None
        (reply,) = await self._all([(key, ("HMGET", key, "body", "version"))])
        body, version = checked(reply)
        return body, int(version)

    async def _per_bucket(self, tenant: str, buckets: Iterable[int], command: Any) -> dict[int, Any]:
        check_tenant(tenant)
        wanted = list(buckets)
        tags = [tag_of(tenant, bucket) for bucket in wanted]
        replies = await self._all([(tag, command(tag)) for tag in tags])
        failures = [reply for reply in replies if isinstance(reply, StoreError)]
        if failures and len(failures) == len(replies):
            raise failures[0]
        return dict(zip(wanted, replies, strict=True))

    async def _all(self, calls: Sequence[Any]) -> list[Any]:
        if not calls:
            return []
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            return await self._call(calls)


def _commit_call(tag: str, of: Commit, group: Group) -> Any:
    args: list[Any] = [group, of.position, of.new_position, DEAD_LETTERS, len(of.fields), len(of.dead)]
    for name, value in of.fields.items():
        args += [name, value]
    for entry in of.dead:
        args += [entry.entry_id, entry.reason or "", entry.payload]
    return tag, fcall("rc_commit", [tag + "ev", tag + group, tag + "dead"], [*args, *of.done])


def _mapping(reply: Any) -> dict[bytes, bytes]:
    """Return a hash or the fields of an entry, whichever protocol the connection speaks."""
    return dict(reply) if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
