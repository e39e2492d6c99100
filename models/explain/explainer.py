"""The reason writer: cache, else model under grammar and checker, else template; never late, never false.

Yields one reason per slot in the order they are finished. Called by the request path and by the batch job that warms
the cache. Knows nothing of HTTP, of Ray or of how evidence was found.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from models.explain.checker import check_reason
from models.explain.evidence import Evidence
from models.explain.generator import Generator, GeneratorBusy, ReasonRequest
from models.explain.reason_cache import ReasonKey, TieredReasons
from models.explain.template import template_reason

ReasonSource = Literal["llm", "cache", "template", "none"]
Fallback = Literal["no_llm", "queue_full", "deadline", "checker", "engine"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reason:
    """One finished reason. `slot` is the number the caller gave; `fallback` says why a template stands here."""

    slot: int
    text: str
    source: ReasonSource
    evidence: Evidence
    fallback: Fallback | None = None


@dataclass(slots=True)
class WriterStats:
    """Counts since the writer was made: reasons by source, templates by cause, checker refusals by verdict."""

    sources: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    joined: int = 0
    """Reasons that shared a generation under way with another reason of the same key (single flight)."""


class _Outcome(NamedTuple):
    """What a generation came to: a checked sentence, or why there is none."""

    text: str = ""
    failed: Fallback | None = None


@dataclass(slots=True)
class _Flight:
    """One generation under way and how many reasons wait for it."""

    task: asyncio.Task[_Outcome]
    waiters: int = 0


class ReasonWriter:
    """Writes reasons with one generator (or none). For one event loop; `write` may run many times at once."""

    def __init__(
        self, generator: Generator | None, *, max_pending: int = 64, cache: TieredReasons | None = None
    ) -> None:
        """`max_pending` bounds the generations under way or waiting; beyond it a template comes at once.

        `cache` must be one for the generator's own model.
        """
        self._generator = generator
        self._max_pending = max_pending
        self._cache = cache if cache is not None else TieredReasons(generator.model if generator is not None else "")
        self._flights: dict[ReasonKey, _Flight] = {}
        self.stats = WriterStats()

    @property
    def pending(self) -> int:
        """Generations under way or waiting in the engine."""
        return len(self._flights)

    async def healthy(self) -> bool:
        """Whether there is a generator that lives and makes progress."""
        return self._generator is not None and await self._generator.healthy()

    async def write(
        self,
        tasks: Sequence[tuple[int, Evidence]],
        *,
        language: str = "en",
        tenant: str = "main",
        deadline_s: float = 15.0,
        allow_llm: bool = True,
    ) -> AsyncIterator[Reason]:
        """Yield one reason per task, as they finish; earlier tasks are more urgent.

        A reason that is not written `deadline_s` seconds from now is a template. With `allow_llm` False or no time
        it is the cache or a template, at once. Closing the iterator cancels what is still being written.
        """
        ends = asyncio.get_running_loop().time() + deadline_s
        llm = self._generator if allow_llm and deadline_s > 0 else None
        ready: list[Reason] = []
        waiting: set[asyncio.Task[Reason]] = set()
        found = await self._cache.find([evidence for _, evidence in tasks], language=language, tenant=tenant)
        try:
            for place, (slot, evidence) in enumerate(tasks):
                key = self._cache.key(evidence, language, tenant)
                if (text := found.texts[place]) is not None:
                    ready.append(self._count(Reason(slot, text, "cache", evidence)))
                elif llm is None:
                    ready.append(self._template(slot, evidence, language, "no_llm"))
                elif (flight := self._board(llm, key, evidence, place)) is None:
                    ready.append(self._template(slot, evidence, language, "queue_full"))
                else:
                    waiter = asyncio.create_task(self._wait(flight, slot, evidence, language, ends))
                    # A callback, not a `finally` in the task: a task cancelled before its first step runs neither.
                    waiter.add_done_callback(functools.partial(self._leave, key, flight))
                    waiting.add(waiter)
            for reason in ready:
                yield reason
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for reason in sorted((t.result() for t in done), key=lambda r: r.slot):
                    yield reason
        finally:
            for task in waiting:
                task.cancel()

    def _board(self, generator: Generator, key: ReasonKey, evidence: Evidence, place: int) -> _Flight | None:
        """Return the flight for this key, a new one if there is room, else None."""
        flight = self._flights.get(key)
        if flight is not None:
            self.stats.joined += 1
        elif len(self._flights) >= self._max_pending:
            return None
        else:
            request = ReasonRequest(evidence, language=key.language, priority=place, tenant=key.tenant)
            flight = _Flight(asyncio.create_task(self._generate(generator, request)))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._land(key, flight))
        flight.waiters += 1
        return flight

    def _land(self, key: ReasonKey, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _leave(self, key: ReasonKey, flight: _Flight, _: asyncio.Task[Reason]) -> None:
        flight.waiters -= 1
        if flight.waiters == 0 and not flight.task.done():
            self._land(key, flight)  # a newcomer must start anew, not join a dying one
            flight.task.cancel()

    async def _generate(self, generator: Generator, request: ReasonRequest) -> _Outcome:
        """Return the checked sentence, now cached, or why there is none. Never raises but when cancelled."""
        try:
            text = await generator.generate(request)
        except GeneratorBusy:
            return _Outcome(failed="queue_full")
        except Exception as error:  # whatever an engine raises, the list goes on with templates
            _log.warning("the generator failed (%s); a template stands in", type(error).__name__)
            return _Outcome(failed="engine")
        verdict = check_reason(text, request.evidence, language=request.language)
        if verdict != "ok":
            self.stats.refusals[verdict] += 1
            return _Outcome(failed="checker")
        self._cache.keep(request.evidence, request.language, request.tenant, text)
        return _Outcome(text)

    async def _wait(self, flight: _Flight, slot: int, evidence: Evidence, language: str, ends: float) -> Reason:
        try:
            # `wait` leaves the generation alone on a timeout: others may wait for it, and the last to leave ends it.
            async with asyncio.timeout_at(ends):
                await asyncio.wait({flight.task})
        except TimeoutError:
            return self._template(slot, evidence, language, "deadline")
        outcome = _Outcome(failed="engine") if flight.task.cancelled() else flight.task.result()
        if outcome.failed is not None:
            return self._template(slot, evidence, language, outcome.failed)
        return self._count(Reason(slot, outcome.text, "llm", evidence))

    def _template(self, slot: int, evidence: Evidence, language: str, why: Fallback) -> Reason:
        self.stats.fallbacks[why] += 1
        return self._count(Reason(slot, template_reason(evidence, language), "template", evidence, why))

    def _count(self, reason: Reason) -> Reason:
        self.stats.sources[reason.source] += 1
        return reason
