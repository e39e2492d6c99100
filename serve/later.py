"""Reasons by decision id: for a caller who took the list at once and comes back for the words.

The list's evidence waits in the cache store; the reasons come from the reason cache or are written now, by the same
rules as on the live path. Knows nothing of HTTP; the edge calls it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel

from models.explain.decisions import DecisionBook, ExplainedList
from models.explain.reason_cache import TieredReasons
from models.store.port import StoreError
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.degradation import DegradationLevel
from serve.errors import DependencyError, NotSampled
from serve.metrics import ServeMetrics
from serve.ports import Explainer
from serve.reasons import write_reasons
from serve.settings import ServeSettings

ServerEvent = tuple[str, dict[str, Any]]


class ReasonOut(BaseModel):
    """One reason of a list that was answered before."""

    item_id: str
    rank: int
    reason: str
    reason_source: str
    evidence: dict[str, Any]


class ReasonsAnswer(BaseModel):
    """Body of the 200 of `GET /v1/decisions/{decision_id}/reasons`, in the order of the list."""

    request_id: str
    decision_id: str
    degraded: bool
    degraded_reasons: list[str]
    reasons: list[ReasonOut]


class LaterReasons:
    """Answers `GET /v1/decisions/{id}/reasons`. One per ingress replica."""

    def __init__(
        self,
        explainer: Explainer,
        decisions: DecisionBook | None,
        cache: TieredReasons | None,
        metrics: ServeMetrics,
        settings: ServeSettings,
    ) -> None:
        """`decisions` is None where no cache store is configured: then no decision is ever known."""
        self._explainer, self._decisions, self._cache = explainer, decisions, cache
        self._metrics, self._settings = metrics, settings

    async def answer(
        self, decision_id: str, deadline_ms: int | None, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> dict[str, Any]:
        """Return all reasons at once, in the order of the list. Raises NotSampled, DependencyError."""
        who = {"tenant": tenant, "request_id": request_id, "planned": planned}
        reasons: list[dict[str, Any]] = []
        done: dict[str, Any] = {}
        async with aclosing(self.stream(decision_id, deadline_ms, **who)) as events:  # type: ignore[arg-type, type-var]
            async for name, body in events:
                if name == "reason":
                    reasons.append(body)
                else:
                    done = body
        return {**done, "reasons": sorted(reasons, key=lambda body: int(body["rank"]))}

    async def stream(
        self, decision_id: str, deadline_ms: int | None, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> AsyncIterator[ServerEvent]:
        """Yield one `reason` event per item as it is written, then `done`. Raises NotSampled, DependencyError."""
        explained = await self._explained(tenant, decision_id)
        wanted = self._settings.stream_reasons_deadline_ms if deadline_ms is None else deadline_ms
        granted = float(min(wanted, self._settings.max_reasons_deadline_ms))
        list_deadline = Deadline.after_ms(self._settings.default_deadline_ms)
        ctx = RequestContext(request_id, tenant, explained.release, list_deadline, 0, planned=planned)
        async with aclosing(
            write_reasons(
                ctx,
                self._explainer,
                explained.evidence,
                language=explained.language,
                deadline_ms=granted,
                cache=self._cache,
            )  # type: ignore[type-var]
        ) as reasons:
            async for reason in reasons:
                self._metrics.reason(reason.source)
                yield (
                    "reason",
                    {
                        "item_id": explained.item_ids[reason.slot],
                        "rank": reason.slot + 1,
                        "reason": reason.text,
                        "reason_source": reason.source,
                        "evidence": reason.evidence.to_dict(),
                    },
                )
        degraded = [str(reason) for reason in ctx.degraded]
        yield (
            "done",
            {
                "request_id": request_id,
                "decision_id": decision_id,
                "degraded": bool(degraded),
                "degraded_reasons": degraded,
            },
        )

    async def _explained(self, tenant: str, decision_id: str) -> ExplainedList:
        try:
            found = None if self._decisions is None else await self._decisions.read(tenant, decision_id)
        except StoreError as error:
            raise DependencyError("the cache store is unavailable") from error
        if found is None:
            raise NotSampled("no reasons are kept of this decision: unknown, expired, or asked for without explain")
        return found
