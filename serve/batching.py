"""Coalescing: many members, few calls, no timer.

While fewer than `calls_per_replica` calls per live callee replica are in flight, a member goes out at once;
otherwise it waits for the next call. A call takes its replica's share of those who wait, and closes at 64 members or
1 MiB. Members that have expired or whose caller has left are dropped before sending, and one member's error never
fails the rest. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve.errors import ContractViolation, DeadlineExceeded, DependencyError, OverloadError

Member = TypeVar("Member")
Result = TypeVar("Result")

MAX_MEMBERS = 64
MAX_CALL_BYTES = 1 << 20


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Member, Result]):
    member: Member
    size: int
    expires_s: float
    future: asyncio.Future[Result]


class Coalescer(Generic[Member, Result]):
    """Sends members in batches through `send`; one per callee deployment and event loop."""

    def __init__(
        self,
        send: Callable[[list[tuple[Member, float]]], Awaitable[Sequence[Result | BaseException]]],
        *,
        replicas: Callable[[], int],
        size_of: Callable[[Member], int] = lambda _: 0,
        calls_per_replica: int = 2,
        max_waiting: int = 1024,
    ) -> None:
        """`send` takes (member, remaining ms) pairs and returns a result or an error per pair, same order."""
        self._send = send
        self._replicas = replicas
        self._size_of = size_of
        self._calls_per_replica = calls_per_replica
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting[Member, Result]] = deque()
        self._in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(self, member: Member, remaining_ms: float) -> Result:
        """Return the member's result. Raises its error, OverloadError when too many wait, or DeadlineExceeded."""
        if len(self._waiting) >= self._max_waiting:
            # Members whose callers have left are no load; only living ones count against the bound.
            self._waiting = deque(one for one in self._waiting if not one.future.done())
        if len(self._waiting) >= self._max_waiting:
            raise OverloadError("too many calls wait for this stage")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        expires = time.monotonic() + remaining_ms / 1000.0
        self._waiting.append(_Waiting(member, self._size_of(member), expires, future))
        self._pump()
        try:
            # Not left to the batch: a member must not wait for neighbours that have more time, or for a free slot.
            async with asyncio.timeout(remaining_ms / 1000.0):
                return await future
        except TimeoutError as error:
            raise DeadlineExceeded("no answer in time") from error

    def _pump(self) -> None:
        while self._waiting and self._in_flight < self._calls_per_replica * max(1, self._replicas()):
            batch = self._next_batch()
            if not batch:
                return
            self._in_flight += 1
            task = asyncio.get_running_loop().create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self) -> list[_Waiting[Member, Result]]:
        batch: list[_Waiting[Member, Result]] = []
        size, now = 0, time.monotonic()
        # A call takes its replica's share of those who wait: one replica with all of them would leave the others idle.
        most = min(MAX_MEMBERS, math.ceil(len(self._waiting) / max(1, self._replicas())))
        while self._waiting and len(batch) < most:
            one = self._waiting[0]
            if batch and size + one.size > MAX_CALL_BYTES:
                break
            self._waiting.popleft()
            if one.future.done():  # the caller was cancelled
                continue
            if one.expires_s <= now:
                one.future.set_exception(DeadlineExceeded("expired before it was sent"))
                continue
            batch.append(one)
            size += one.size
        return batch

    async def _run(self, batch: list[_Waiting[Member, Result]]) -> None:
        now = time.monotonic()
        call = asyncio.ensure_future(
            self._guarded([(one.member, max(0.0, (one.expires_s - now) * 1000.0)) for one in batch])
        )
        longest = max(one.expires_s for one in batch) - now
        try:
            # The sender enforces the deadline too: a callee that never answers must not hold a slot.
            results = await asyncio.wait_for(call, timeout=longest)
        except TimeoutError:
            results = [DeadlineExceeded("no answer in time")] * len(batch)
        except asyncio.CancelledError:
            # The callee's doing or a shutdown; either way nobody may be left waiting.
            results = [DependencyError("the call was cancelled")] * len(batch)
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._in_flight -= 1
        self._deliver(batch, results)
        self._pump()

    async def _guarded(self, members: list[tuple[Member, float]]) -> Sequence[Result | BaseException]:
        results = await self._send(members)
        if len(results) != len(members):
            raise ContractViolation(f"{len(results)} results for {len(members)} members")
        return results

    @staticmethod
    def _deliver(batch: list[_Waiting[Member, Result]], results: Sequence[Result | BaseException]) -> None:
        for one, result in zip(batch, results, strict=True):
            if one.future.done():
                continue
            if isinstance(result, BaseException):
                one.future.set_exception(result)
            else:
                one.future.set_result(result)
