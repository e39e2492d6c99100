"""Streams to statistics: takes entries, folds them, commits fields and position in one step; merges buckets.

A crash at any point loses nothing and counts nothing twice: what was taken and not committed is taken again, and
what was committed cannot be committed again. Called by the consumer loop. Knows nothing of frameworks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from models.behaviour.live import ItemState, decode_state, fold, items_of
from models.behaviour.snapshot import LiveStatistics, merge
from models.consumer.settings import ConsumerSettings
from models.ids import BUCKETS
from models.store.port import StoreMismatch
from models.store.streams import Commit, EventStreams, Group, Taken

_DAY_MS = 86_400_000
_BUCKETS_AT_ONCE = 32
_HALF_LIFE = "=half_life_ms"
"""A field no item can have: `=` is in no id."""


@dataclass(slots=True)
class Counts:
    """What a consumer did since its start. `damaged`: stored states that could not be read and began anew."""

    applied: int = 0
    dead: int = 0
    trimmed: int = 0
    damaged: int = 0
    dropped_items: int = 0
    failed_buckets: dict[int, str] = field(default_factory=dict)


class StatisticsConsumer:
    """Folds the streams of one tenant. One instance per event loop; two only cost each other time."""

    def __init__(
        self, streams: EventStreams, *, tenant: str, settings: ConsumerSettings, buckets: int = BUCKETS
    ) -> None:
        self._streams, self._tenant, self._settings = streams, tenant, settings
        self._half_life_ms = settings.half_life_days * _DAY_MS
        self._again = True  # first what a crash left behind
        self._buckets = range(buckets)
        self._stale = set(self._buckets)
        self._merged: dict[int, dict[str, ItemState]] = {}
        self.counts = Counts()

    async def step(self) -> int:
        """Take, fold and commit one batch per bucket; return how many entries were done with.

        Raises StoreError; nothing is lost by that. Raises StoreMismatch when the half-life was another one before.
        """
        try:
            work = await self._take(again=True) if self._again else []
            self._again = bool(work)  # what a crash left behind may be more than one batch
            work = work or await self._take()
            return await self._apply(work) if work else 0
        except BaseException:
            self._again = True  # some of it may have been taken
            raise

    async def _take(self, *, again: bool = False) -> list[Taken]:
        taken = await self._streams.take(
            self._tenant, self._buckets, group=Group.statistics, count=self._settings.batch, again=again
        )
        self.counts.failed_buckets = {t.bucket: t.failed for t in taken if t.failed}
        return [t for t in taken if t.entries]

    async def _apply(self, work: list[Taken]) -> int:
        wanted = {t.bucket: [_HALF_LIFE, *items_of(t.entries)] for t in work}
        known = await self._streams.read_fields(self._tenant, wanted, group=Group.statistics)
        commits = [self._commit_of(t, known.get(t.bucket, {})) for t in work]
        results = await self._streams.commit(self._tenant, commits, group=Group.statistics)
        done = 0
        for one, commit, landed in zip(work, commits, results, strict=True):
            if not landed:  # another consumer was faster here
                self._again = True
                continue
            self._stale.add(one.bucket)
            done += len(one.entries)
            trimmed = sum(e.event is None for e in one.entries) - len(commit.dead)
            self.counts.dead += len(commit.dead)
            self.counts.trimmed += trimmed
            self.counts.applied += len(one.entries) - trimmed - len(commit.dead)
        return done

    def _commit_of(self, taken: Taken, known: Mapping[str, bytes]) -> Commit:
        self._check_half_life(known.get(_HALF_LIFE))
        changed = fold(
            self._decoded(known),
            taken.entries,
            half_life_ms=self._half_life_ms,
            followers=self._settings.followers,
        )
        fields = {item_id: state.encode() for item_id, state in changed.items()}
        return Commit(
            bucket=taken.bucket,
            position=taken.position,
            done=[e.entry_id for e in taken.entries],
            fields={_HALF_LIFE: repr(self._half_life_ms).encode(), **fields},
            dead=[e for e in taken.entries if e.event is None and e.payload],
        )

    def _check_half_life(self, stored: bytes | None) -> None:
        if stored is not None and float(stored) != self._half_life_ms:
            raise StoreMismatch(
                f"the statistics in this store halve every {float(stored) / _DAY_MS:g} days, this process wants "
                f"{self._settings.half_life_days:g}: use the same half-life, or an empty store"
            )

    def _decoded(self, fields: Mapping[str, bytes]) -> dict[str, ItemState]:
        states = {}
        for item_id, value in fields.items():
            if not item_id.startswith("="):
                state = decode_state(value)
                if state is None:
                    self.counts.damaged += 1
                else:
                    states[item_id] = state
        return states

    @property
    def changed(self) -> bool:
        """Whether anything was committed, or nothing was merged, since the last `snapshot`."""
        return bool(self._stale)

    async def snapshot(self) -> LiveStatistics:
        """Return the statistics of all buckets; reads again only those that changed. Raises StoreError."""
        stale = sorted(self._stale)
        for start in range(0, len(stale), _BUCKETS_AT_ONCE):
            await self._refresh(stale[start : start + _BUCKETS_AT_ONCE])
        buckets = [self._merged[bucket] for bucket in sorted(self._merged)]
        return await asyncio.to_thread(merge, buckets, half_life_ms=self._half_life_ms)

    async def _refresh(self, stale: list[int]) -> None:
        found = await self._streams.read_state(self._tenant, stale, group=Group.statistics)
        self._stale -= set(stale)
        for bucket, (position, fields) in found.items():
            self._check_half_life(fields.get(_HALF_LIFE))
            states = self._decoded(fields)
            await self._drop_weakest(bucket, position, states)
            self._merged[bucket] = states

    async def _drop_weakest(self, bucket: int, position: str, states: dict[str, ItemState]) -> None:
        surplus = len(states) - self._settings.items_per_bucket
        if surplus <= 0:
            return
        weakest = sorted(states, key=lambda i: (states[i].weight(), i))[:surplus]
        gone = Commit(bucket=bucket, position=position, fields=dict.fromkeys(weakest, b""))
        (landed,) = await self._streams.commit(self._tenant, [gone], group=Group.statistics)
        if landed:
            self.counts.dropped_items += surplus
            for item_id in weakest:
                del states[item_id]
