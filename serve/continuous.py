"""Continuous batching: requests of a ranker are computed in steps of bounded tokens, the most urgent first.

Each step takes the requests whose deadlines are nearest, computes about `step_tokens` tokens of them in the executor
and puts back what is not done; so a request that arrives with less time waits for one step, not for everything before
it, and small requests share a step. Requests that expired or whose caller left are dropped before they are computed,
and counted. The waiting list is bounded. Knows nothing of Ray. Called by `ModelRanker`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.rankers.apart import ScoringTask, divisible
from models.rankers.port import CrossEncoder
from models.retrieval.query import RetrievalQuery
from serve.errors import DeadlineExceeded, DependencyError, OverloadError, RecommendError

Values = npt.NDArray[np.float32]
Dropped = Literal["expired", "cancelled"]

STEP_TOKENS = 1024
MAX_WAITING = 256
_GUESS = 64
"""Tokens that a candidate is taken for until its request has been taken apart."""


class HasRanker(Protocol):
    """What holds the ranker of a release; reading it may load a model, so it is read in the executor."""

    @property
    def ranker(self) -> CrossEncoder:
        """The ranker."""
        ...


@dataclass(slots=True, eq=False)
class _Request:
    """One request; `outcome` is written by the thread that computes a step and read by the loop after it."""

    release: HasRanker
    query: RetrievalQuery
    candidates: Candidates
    expires_s: float
    future: asyncio.Future[tuple[Values, str]]
    task: ScoringTask | None = None
    outcome: tuple[Values, str] | Exception | None = None
    alone: bool = False
    """Whether it gets steps of its own, because a step that it shared failed."""

    @property
    def left(self) -> int:
        """Tokens to compute, a guess before it was begun."""
        return len(self.candidates) * _GUESS if self.task is None else self.task.left


class ContinuousBatcher:
    """Scores requests of one replica; one per executor and event loop."""

    def __init__(
        self,
        executor: Executor,
        *,
        workers: int = 1,
        step_tokens: int = STEP_TOKENS,
        max_waiting: int = MAX_WAITING,
        on_drop: Callable[[Dropped], None] = lambda _: None,
    ) -> None:
        """At most `workers` steps run at a time; `executor` should have as many threads."""
        self._executor, self._workers = executor, workers
        self._step_tokens, self._max_waiting, self._on_drop = step_tokens, max_waiting, on_drop
        self._waiting: list[tuple[float, int, _Request]] = []
        self._numbers = itertools.count()
        self._steps: set[asyncio.Task[None]] = set()
        self.dropped: dict[Dropped, int] = {"expired": 0, "cancelled": 0}
        """Requests that were given up before they were computed, or before the rest of them was."""

    @property
    def waiting(self) -> int:
        """Requests that wait for a step, given up or not."""
        return len(self._waiting)

    async def score(
        self, release: HasRanker, query: RetrievalQuery, candidates: Candidates, remaining_ms: float
    ) -> tuple[Values, str]:
        """Return the ranker's scores and their kind.

        Raises OverloadError when too many wait, DeadlineExceeded when the time is up, and DependencyError when the
        model fails.
        """
        if len(self._waiting) >= self._max_waiting:
            self._waiting = [one for one in self._waiting if not self._given_up(one[2])]
            heapq.heapify(self._waiting)
        if len(self._waiting) >= self._max_waiting:
            raise OverloadError("too many requests wait for the ranker")
        loop = asyncio.get_running_loop()
        expires = time.monotonic() + remaining_ms / 1000.0
        request = _Request(release, query, candidates, expires, loop.create_future())
        self._put(request)
        self._pump()
        try:
            # The batcher never waits for a caller, nor a caller for a step that comes too late.
            async with asyncio.timeout(remaining_ms / 1000.0):
                return await request.future
        except TimeoutError as error:
            raise DeadlineExceeded("the ranker ran out of time") from error

    def _put(self, request: _Request) -> None:
        heapq.heappush(self._waiting, (request.expires_s, next(self._numbers), request))

    def _pump(self) -> None:
        while self._waiting and len(self._steps) < self._workers:
            requests = self._next()
            if not requests:
                return
            step = asyncio.get_running_loop().create_task(self._run(requests))
            self._steps.add(step)

    def _next(self) -> list[_Request]:
        """Take the most urgent requests of one release until they fill a step."""
        taken: list[_Request] = []
        others = []
        tokens = 0
        while self._waiting and tokens < self._step_tokens:
            entry = heapq.heappop(self._waiting)
            request = entry[2]
            if self._given_up(request):
                continue
            if taken and (request.alone or request.release is not taken[0].release):
                others.append(entry)
                continue
            taken.append(request)
            if request.alone:
                break
            tokens += request.left
        for entry in others:
            heapq.heappush(self._waiting, entry)
        return taken

    def _given_up(self, request: _Request) -> bool:
        """Whether nobody waits for `request` any more; counts it."""
        expired = request.expires_s <= time.monotonic()
        if not expired and not request.future.done():
            return False
        why: Dropped = "expired" if expired else "cancelled"
        self.dropped[why] += 1
        self._on_drop(why)
        if not request.future.done():
            request.future.set_exception(DeadlineExceeded("expired before it was computed"))
        return True

    async def _run(self, requests: list[_Request]) -> None:
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._executor, _step, requests, self._step_tokens)
        except Exception as error:  # the executor was shut down: nobody may be left waiting
            for request in requests:
                request.outcome = error
        finally:
            self._steps.discard(asyncio.current_task())  # type: ignore[arg-type]
        for request in requests:
            self._settle(request)
        self._pump()

    def _settle(self, request: _Request) -> None:
        if request.outcome is None:
            self._put(request)
        elif request.future.done():
            return
        elif not isinstance(request.outcome, Exception):
            request.future.set_result(request.outcome)
        elif isinstance(request.outcome, RecommendError):
            request.future.set_exception(request.outcome)
        else:
            # Only the type is told: a message may hold what a user sent.
            failed = DependencyError(f"the ranker failed with {type(request.outcome).__name__}")
            failed.__cause__ = request.outcome
            request.future.set_exception(failed)


def _step(requests: Sequence[_Request], tokens: int) -> None:
    """Compute one step, in a thread; one request's failure never touches another."""
    try:
        ranker = divisible(requests[0].release.ranker)
    except Exception as error:
        for request in requests:
            request.outcome = error
        return
    for request in requests:
        if request.task is None:
            try:
                request.task = ranker.take_apart(request.query, request.candidates)
            except Exception as error:
                request.outcome = error
    begun = [one for one in requests if one.task is not None and one.task.left]
    try:
        if begun:
            ranker.advance([one.task for one in begun], tokens=tokens)
    except Exception as error:
        for one in begun:
            if len(begun) == 1:
                one.outcome = error
            else:
                # It may have failed because of one of them: each begins anew, in a step of its own.
                one.task, one.alone = None, True
    for request in requests:
        if request.outcome is None and request.task is not None and not request.task.left:
            try:
                request.outcome = request.task.scores(), ranker.score_kind
            except Exception as error:
                request.outcome = error
