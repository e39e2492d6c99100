"""The request context: who asks, under which release, until when. Built once by the ingress.

It is mutable in one respect only: stages add degraded reasons and timings to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from serve.deadline import Deadline
from serve.degradation import DegradationLevel, DegradedReason


@dataclass(slots=True)
class RequestContext:
    """State of one request.

    `release_id` is pinned at admission and travels with every stage call; `now_ms` is wall-clock time of the
    request; `timings_ms` has one entry per stage that ran. With `may_repin` a stage that lacks the release says so
    instead of failing open, because whoever built the context has an older release to try.
    """

    request_id: str
    tenant: str
    release_id: str
    deadline: Deadline
    now_ms: int
    planned: DegradationLevel = DegradationLevel.full
    may_repin: bool = False
    degraded: list[DegradedReason] = field(default_factory=list)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def degrade(self, reason: DegradedReason) -> None:
        """Note that the answer is less than full; each reason counts once."""
        if reason not in self.degraded:
            self.degraded.append(reason)


@dataclass(frozen=True, slots=True)
class StageCall:
    """What of the context crosses a process boundary: small, picklable, without ids of users."""

    tenant: str
    release_id: str
    remaining_ms: float

    @classmethod
    def of(cls, ctx: RequestContext) -> StageCall:
        """Take what a stage needs from the context."""
        return cls(ctx.tenant, ctx.release_id, ctx.deadline.remaining_ms())
