"""`MemoryEventStreams`: the event-stream port in this process's memory, the fake that ships beside the port.

Same semantics as `RedisEventStreams`, proven by one contract suite. Called by tests and single-process use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.store.checks import check_tenant
from models.store.memory import MemoryStore, Tenant
from models.store.streams import DEAD_LETTERS, Commit, DeadLetter, Group, StreamEntry, StreamLag, Taken


@dataclass(slots=True)
class _GroupState:
    position: str = "0-0"
    taken: str = "0-0"  # the last entry that was handed out
    pending: dict[str, StreamEntry] = field(default_factory=dict)
    fields: dict[str, bytes] = field(default_factory=dict)


class MemoryEventStreams(MemoryStore):
    """An `EventStreams` without a server. Entries that are handed out survive trimming."""

    def __init__(self, **options: Any) -> None:
        """Takes the options of `MemoryStore`."""
        super().__init__(**options)
        self._groups: dict[tuple[str, int, Group], _GroupState] = {}
        self._dead: dict[str, list[DeadLetter]] = {}
        self._statistics: dict[str, tuple[bytes, int]] = {}

    def _group(self, tenant: str, bucket: int, group: Group) -> _GroupState:
        return self._groups.setdefault((tenant, bucket, group), _GroupState())

    def _stream(self, tenant: str, bucket: int) -> list[StreamEntry]:
        return self._tenants.get(tenant, Tenant()).streams.get(bucket, [])

    async def take(
        self, tenant: str, buckets: Iterable[int], *, group: Group, count: int, again: bool = False
    ) -> list[Taken]:
        """See `EventStreams.take`."""
        check_tenant(tenant)
        taken = []
        for bucket in buckets:
            state = self._group(tenant, bucket, group)
            if again:
                entries = list(state.pending.values())[:count]
            else:
                after = _order(state.taken)
                entries = [e for e in self._stream(tenant, bucket) if _order(e.entry_id) > after][:count]
                state.pending |= {e.entry_id: e for e in entries}
                state.taken = entries[-1].entry_id if entries else state.taken
            if entries:
                taken.append(Taken(bucket, state.position, tuple(entries)))
        return taken

    async def read_fields(
        self, tenant: str, wanted: Mapping[int, Sequence[str]], *, group: Group
    ) -> dict[int, dict[str, bytes]]:
        """See `EventStreams.read_fields`."""
        check_tenant(tenant)
        states = {bucket: self._group(tenant, bucket, group).fields for bucket, names in wanted.items() if names}
        return {bucket: {n: fields[n] for n in wanted[bucket] if n in fields} for bucket, fields in states.items()}

    async def read_state(
        self, tenant: str, buckets: Iterable[int], *, group: Group
    ) -> dict[int, tuple[str, dict[str, bytes]]]:
        """See `EventStreams.read_state`."""
        check_tenant(tenant)
        states = {bucket: self._group(tenant, bucket, group) for bucket in buckets}
        return {b: (s.position, dict(s.fields)) for b, s in states.items() if s.fields or s.position != "0-0"}

    async def commit(self, tenant: str, commits: Sequence[Commit], *, group: Group) -> list[bool]:
        """See `EventStreams.commit`."""
        check_tenant(tenant)
        return [self._commit(tenant, one, group) for one in commits]

    def _commit(self, tenant: str, one: Commit, group: Group) -> bool:
        state = self._group(tenant, one.bucket, group)
        if state.position != one.position or (one.done and next(iter(state.pending), None) != one.done[0]):
            return False
        for name, value in one.fields.items():
            if value:
                state.fields[name] = value
            else:
                state.fields.pop(name, None)
        self._keep(tenant, [DeadLetter(e.entry_id, e.reason or "", e.payload) for e in one.dead])
        for entry_id in one.done:
            state.pending.pop(entry_id, None)
        state.position = one.new_position
        return True

    async def lag(self, tenant: str, *, group: Group) -> StreamLag:
        """See `EventStreams.lag`."""
        check_tenant(tenant)
        behind = [
            entry
            for bucket, stream in self._tenants.get(tenant, Tenant()).streams.items()
            for entry in stream
            if _order(entry.entry_id) > _order(self._group(tenant, bucket, group).position)
        ]
        now_ms = time.time_ns() // 1_000_000
        return StreamLag(len(behind), max((max(0, now_ms - e.arrived_ms) for e in behind), default=0))

    async def bury(self, tenant: str, letters: Sequence[DeadLetter]) -> None:
        """See `EventStreams.bury`."""
        check_tenant(tenant)
        self._keep(tenant, letters)

    def _keep(self, tenant: str, letters: Sequence[DeadLetter]) -> None:
        kept = self._dead.setdefault(tenant, [])
        kept += letters
        del kept[:-DEAD_LETTERS]

    async def dead_letters(self, tenant: str, *, limit: int = 100) -> list[DeadLetter]:
        """See `EventStreams.dead_letters`."""
        check_tenant(tenant)
        return self._dead.get(tenant, [])[: -limit - 1 : -1]

    async def publish_statistics(self, tenant: str, body: bytes) -> int:
        """See `EventStreams.publish_statistics`."""
        check_tenant(tenant)
        version = self._statistics.get(tenant, (b"", 0))[1] + 1
        self._statistics[tenant] = (body, version)
        return version

    async def read_statistics(self, tenant: str, *, newer_than: int = 0) -> tuple[bytes, int] | None:
        """See `EventStreams.read_statistics`."""
        check_tenant(tenant)
        found = self._statistics.get(tenant)
        return found if found is not None and found[1] > newer_than else None


def _order(entry_id: str) -> tuple[int, int]:
    time_ms, number = entry_id.split("-")
    return int(time_ms), int(number)
