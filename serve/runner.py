"""`run_stage`: the only place with budgets, stage metrics and fail-open rules.

Every stage of the pipeline is run through it. A stage whose budget is below its minimum useful time is
skipped, not started; a stage that fails or runs out of time is replaced by its fallback and the answer says
so. Programmer errors (`ContractViolation`) and client errors never fail open, nor does a missing release while there
is an older one to try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from serve.context import RequestContext, StageCall
from serve.degradation import DegradedReason
from serve.errors import ClientError, ContractViolation, DeadlineExceeded, RecommendError, ReleaseMissing

T = TypeVar("T")
Outcome = Literal["ok", "timeout", "unavailable", "skipped"]


@dataclass(frozen=True, slots=True)
class StagePolicy:
    """How one stage is run: its budget, and the least time in which starting it makes sense."""

    name: Literal["features", "query", "retrieve", "rank"]
    budget_ms: float
    minimum_ms: float


class StageRecorder(Protocol):
    """Receives one observation per stage run."""

    def stage(self, name: str, outcome: Outcome, milliseconds: float) -> None:
        """Count the outcome and the time of one stage."""
        ...


class SilentRecorder:
    """The fake: keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Outcome, float]] = []

    def stage(self, name: str, outcome: Outcome, milliseconds: float) -> None:
        """Remember the observation."""
        self.seen.append((name, outcome, milliseconds))


async def run_stage(
    ctx: RequestContext,
    policy: StagePolicy,
    call: Callable[[StageCall], Awaitable[T]],
    fallback: Callable[[], T],
    recorder: StageRecorder,
) -> T:
    """Run one stage inside its budget and return its result, or `fallback()` with the reason noted in `ctx`."""
    deadline = ctx.deadline.capped(policy.budget_ms)
    budget_ms = deadline.remaining_ms()
    if budget_ms < policy.minimum_ms:
        return _fall_back(ctx, policy, "skipped", 0.0, fallback, recorder)
    started = time.perf_counter()
    outcome: Outcome
    try:
        async with asyncio.timeout(budget_ms / 1000.0):
            result = await call(StageCall(ctx.tenant, ctx.release_id, budget_ms))
    except (ContractViolation, ClientError):
        raise
    except (TimeoutError, DeadlineExceeded):
        outcome = "timeout"
    except RecommendError as error:
        if ctx.may_repin and isinstance(error, ReleaseMissing):
            raise
        outcome = "unavailable"
    else:
        spent = (time.perf_counter() - started) * 1000.0
        ctx.timings_ms[policy.name] = spent
        recorder.stage(policy.name, "ok", spent)
        return result
    return _fall_back(ctx, policy, outcome, (time.perf_counter() - started) * 1000.0, fallback, recorder)


def _fall_back(
    ctx: RequestContext,
    policy: StagePolicy,
    outcome: Outcome,
    spent_ms: float,
    fallback: Callable[[], T],
    recorder: StageRecorder,
) -> T:
    ctx.timings_ms[policy.name] = spent_ms
    recorder.stage(policy.name, outcome, spent_ms)
    reason = "query_not_understood" if policy.name == "query" else f"{policy.name}_{outcome}"
    ctx.degrade(DegradedReason(reason))
    return fallback()
