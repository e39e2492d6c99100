"""What is needed to write a list's reasons later: its evidence, by decision id, in the cache store for a while.

Holds no user id, only what the reasons of that list may say. Called by the recommend service, which keeps it without
waiting, and by the route that gives reasons by decision id.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from models.explain.evidence import Evidence
from models.explain.evidence_json import evidence_from_json, evidence_to_json
from models.store.cache_store import CacheStore
from models.store.port import StoreError

_VERSION = 1
_MOST_WRITES = 128


@dataclass(frozen=True, slots=True)
class ExplainedList:
    """The items of one decision in their order, one record each, and the language that was asked for."""

    language: str
    release: str
    item_ids: tuple[str, ...]
    evidence: tuple[Evidence, ...]

    def to_bytes(self) -> bytes:
        """Return what `from_bytes` reads."""
        records = [evidence_to_json(e) for e in self.evidence]
        row = {"v": _VERSION, "l": self.language, "r": self.release, "i": list(self.item_ids), "e": records}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, value: bytes) -> ExplainedList | None:
        """Read what `to_bytes` wrote; None for anything else, whoever wrote it."""
        try:
            row = json.loads(value)
            items, records = tuple(row["i"]), tuple(evidence_from_json(text) for text in row["e"])
            fits = row["v"] == _VERSION and len(items) == len(records) and all(isinstance(i, str) for i in items)
            return cls(str(row["l"]), str(row["r"]), items, records) if fits else None
        except (ValueError, KeyError, TypeError):
            return None


class DecisionBook:
    """Explained lists by tenant and decision id. For one event loop. `dropped` counts what could not be kept."""

    def __init__(self, store: CacheStore, *, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._writes: set[asyncio.Task[None]] = set()
        self.dropped = 0

    def keep(self, tenant: str, decision_id: str, explained: ExplainedList) -> None:
        """Keep a list soon; nobody waits for it, and a store that is away only means that it is not there later."""
        if len(self._writes) >= _MOST_WRITES:
            self.dropped += 1
            return
        task = asyncio.create_task(self._put(_key(tenant, decision_id), explained))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def read(self, tenant: str, decision_id: str) -> ExplainedList | None:
        """Return a list, or None where it is unknown or has expired. Raises StoreError when it cannot tell."""
        key = _key(tenant, decision_id)
        (value,) = await self._store.get_many([key])
        return None if value is None else ExplainedList.from_bytes(value)

    async def flush(self) -> None:
        """Return when every write under way has ended."""
        while self._writes:
            await asyncio.wait(set(self._writes))

    async def _put(self, key: str, explained: ExplainedList) -> None:
        try:
            await self._store.put(key, explained.to_bytes(), ttl_s=self._ttl_s)
        except StoreError:
            self.dropped += 1


def _key(tenant: str, decision_id: str) -> str:
    return f"decision:{tenant}:{decision_id}"
