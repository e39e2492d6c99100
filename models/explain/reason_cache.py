"""Reasons that were written before: first in this process, then in the cache store that all processes share.

A reason is found by everything that shaped it (`ReasonKey`). What comes out of the shared store is checked against the
record again, since others write there too. Never raises and never waits longer than the store's own time-out.
Called by the ingress before any model is asked, and by the reason writer, which fills it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from models.explain.cache import ReasonCache
from models.explain.checker import check_reason
from models.explain.evidence import Evidence, evidence_hash
from models.explain.frames import language_of
from models.explain.prompt import PROMPT_VERSION
from models.store.cache_store import CacheStore
from models.store.port import StoreError

DEFAULT_TTL_S = 86_400.0
MOST_WRITES = 256
"""Writes under way to the shared store; beyond that a reason stays in this process."""
_VALUE_VERSION = b"1:"


class ReasonKey(NamedTuple):
    """Everything that shaped a reason."""

    evidence: str
    item_version: str
    model: str
    prompt: str
    language: str
    tenant: str

    def name(self) -> str:
        """Return the key in the cache store: the tenant in clear, the rest as 32 hex digits."""
        text = "\0".join(self)
        return f"reason:{self.tenant}:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Found:
    """What the caches hold of a list: one text or None per record. `complete` is False when the store was silent."""

    texts: tuple[str | None, ...]
    complete: bool


class TieredReasons:
    """The reason cache of one process and, where there is one, the shared one behind it. For one event loop.

    `counts` holds how often a reason was found here (`local`), found there (`shared`), in neither (`miss`), could not
    be looked up (`unavailable`) or was there and not believed (`refused`); `not_shared` are writes that failed.
    """

    def __init__(
        self,
        model: str,
        *,
        local: ReasonCache | None = None,
        shared: CacheStore | None = None,
        ttl_s: float = DEFAULT_TTL_S,
        observe: Callable[[str, int], None] | None = None,
    ) -> None:
        """`model` is `Generator.model` of whoever writes: reasons of another model are not found.

        `observe` is told every outcome that is counted, and how many reasons had it.
        """
        self._model = model
        self._local = local if local is not None else ReasonCache(ttl_s=ttl_s)
        self._shared = shared
        self._ttl_s = ttl_s
        self._observe = observe
        self._writes: set[asyncio.Task[None]] = set()
        self.counts: Counter[str] = Counter()

    def key(self, evidence: Evidence, language: str, tenant: str) -> ReasonKey:
        """Return the key of a reason."""
        version, written_in = evidence.item_version, language_of(language)
        return ReasonKey(evidence_hash(evidence), version, self._model, PROMPT_VERSION, written_in, tenant)

    async def find(self, records: Sequence[Evidence], *, language: str, tenant: str) -> Found:
        """Return what is known of each record; one round trip for all that this process does not hold."""
        keys = [self.key(e, language, tenant) for e in records]
        texts = [self._local.get(key) for key in keys]
        missing = [at for at, text in enumerate(texts) if text is None]
        self._count("local", len(texts) - len(missing))
        if not missing or self._shared is None:
            self._count("miss", len(missing))
            return Found(tuple(texts), self._shared is not None or not missing)
        try:
            values = await self._shared.get_many([keys[at].name() for at in missing])
        except StoreError:
            self._count("unavailable", len(missing))
            return Found(tuple(texts), False)
        for at, value in zip(missing, values, strict=True):
            texts[at] = self._believed(value, records[at], language)
            if (text := texts[at]) is not None:
                self._local.put(keys[at], text)
        return Found(tuple(texts), True)

    def remember(self, evidence: Evidence, language: str, tenant: str, text: str) -> None:
        """Keep a checked reason in this process alone: whoever wrote it has shared it."""
        self._local.put(self.key(evidence, language, tenant), text)

    def keep(self, evidence: Evidence, language: str, tenant: str, text: str) -> None:
        """Keep a checked reason here at once, and in the shared store soon; nobody waits for the latter."""
        key = self.key(evidence, language, tenant)
        self._local.put(key, text)
        if self._shared is None or len(self._writes) >= MOST_WRITES:
            return
        task = asyncio.create_task(self._share(self._shared, key.name(), text))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def flush(self) -> None:
        """Return when every write under way has ended."""
        while self._writes:
            await asyncio.wait(set(self._writes))

    async def _share(self, shared: CacheStore, name: str, text: str) -> None:
        try:
            await shared.put(name, _VALUE_VERSION + text.encode(), ttl_s=self._ttl_s)
        except StoreError:
            self._count("not_shared", 1)

    def _believed(self, value: bytes | None, evidence: Evidence, language: str) -> str | None:
        if value is None:
            self._count("miss", 1)
            return None
        # What is not UTF-8 decodes to characters that the checker refuses.
        text = value.removeprefix(_VALUE_VERSION).decode(errors="replace")
        good = value.startswith(_VALUE_VERSION) and check_reason(text, evidence, language=language_of(language)) == "ok"
        self._count("shared" if good else "refused", 1)
        return text if good else None

    def _count(self, outcome: str, count: int) -> None:
        self.counts[outcome] += count
        if self._observe is not None and count:
            self._observe(outcome, count)
