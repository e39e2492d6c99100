"""The recommend service: one validated request in, one answer (or one stream of events) out.

Builds the context, runs the pipeline, gathers evidence and reasons, signs impressions and the cursor, and queues
the served record. Knows nothing of Ray or of the web framework; the ingress calls it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.bundle import ReleaseBundle
from models.candidates import source_names
from models.explain.decisions import DecisionBook, ExplainedList
from models.explain.evidence import Evidence
from models.explain.explainer import Reason
from models.explain.reason_cache import TieredReasons
from models.ids import hash64_array
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.degradation import DegradationLevel, DegradedReason, level_of
from serve.errors import InvalidRequest, ReleaseMissing
from serve.evidence import slate_evidence
from serve.metrics import ServeMetrics
from serve.pipeline import NOTHING_SHOWN, Hashes, RecommendationPipeline, Slate
from serve.ports import Explainer
from serve.reasons import write_reasons
from serve.records import ServedRecord, ServedRecords
from serve.releases import ReleaseHolder
from serve.schemas import RecommendRequest
from serve.settings import ServeSettings
from serve.signing import Signer, TokenInvalid

SUPPORTED_LANGUAGES = frozenset({"en", "zh"})
ServerEvent = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Decision:
    """Everything known once the list is ready."""

    ctx: RequestContext
    request: RecommendRequest
    slate: Slate
    bundle: ReleaseBundle
    decision_id: str
    language: str
    evidence: list[Evidence]
    items: list[dict[str, Any]]
    cursor: str | None


class RecommendService:
    """Answers recommend requests. One per ingress replica; safe for concurrent use on its event loop."""

    def __init__(
        self,
        *,
        pipeline: RecommendationPipeline,
        explainer: Explainer,
        releases: ReleaseHolder,
        signer: Signer,
        records: ServedRecords,
        metrics: ServeMetrics,
        settings: ServeSettings,
        executor: Executor,
        reason_cache: TieredReasons | None = None,
        decisions: DecisionBook | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._explainer = explainer
        self._releases = releases
        self._signer = signer
        self._records = records
        self._metrics = metrics
        self._settings = settings
        self._executor = executor
        self._reason_cache = reason_cache
        self._decisions = decisions

    async def answer(
        self, request: RecommendRequest, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> dict[str, Any]:
        """Return the JSON answer; reasons are those that are there by `reasons_deadline_ms` (default 0)."""
        started = time.perf_counter()
        decision = await self._decide(request, tenant=tenant, request_id=request_id, planned=planned)
        if request.explain:
            deadline_ms = self._reasons_deadline(request, default_ms=0)
            async for reason in self._reasons(decision, deadline_ms):
                _attach(decision.items[reason.slot], reason)
        decision.ctx.timings_ms["total"] = (time.perf_counter() - started) * 1000.0
        return self._close(decision, "json")

    async def stream(
        self, request: RecommendRequest, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> AsyncIterator[ServerEvent]:
        """Yield one `items` event, one `reason` event per item as it is written, and one `done` event."""
        started = time.perf_counter()
        decision = await self._decide(request, tenant=tenant, request_id=request_id, planned=planned)
        decision.ctx.timings_ms["total"] = (time.perf_counter() - started) * 1000.0
        yield "items", self._close(decision, "stream")
        if request.explain:
            deadline_ms = self._reasons_deadline(request, default_ms=self._settings.stream_reasons_deadline_ms)
            async with aclosing(self._reasons(decision, deadline_ms)) as reasons:  # type: ignore[type-var]
                async for reason in reasons:
                    item = decision.items[reason.slot]
                    _attach(item, reason)
                    yield "reason", {k: item[k] for k in ("item_id", "rank", "reason", "reason_source", "evidence")}
        ctx = decision.ctx
        ctx.timings_ms["reasons"] = (time.perf_counter() - started) * 1000.0 - ctx.timings_ms["total"]
        yield "done", {"request_id": ctx.request_id, **_degradation(ctx), "timings_ms": _rounded(ctx.timings_ms)}

    async def _decide(
        self, request: RecommendRequest, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> _Decision:
        ctx, slate, shown = await self._list(request, tenant=tenant, request_id=request_id, planned=planned)
        bundle = self._releases.bundle(tenant, ctx.release_id)
        language = request.language.split("-")[0].lower()
        if request.explain and language not in SUPPORTED_LANGUAGES:
            ctx.degrade(DegradedReason.language_unsupported)
            language = "en"
        evidence: list[Evidence] = []
        if request.explain and slate.item_ids:
            loop = asyncio.get_running_loop()
            evidence = await loop.run_in_executor(self._executor, slate_evidence, bundle, slate)
        decision_id = uuid.uuid4().hex
        return _Decision(
            ctx=ctx,
            request=request,
            slate=slate,
            bundle=bundle,
            decision_id=decision_id,
            language=language,
            evidence=evidence,
            items=self._items(ctx, request, slate, bundle, decision_id, evidence),
            cursor=self._cursor(ctx, request, slate, shown),
        )

    async def _list(
        self, request: RecommendRequest, *, tenant: str, request_id: str, planned: DegradationLevel
    ) -> tuple[RequestContext, Slate, Hashes]:
        """Run the pipeline under the current release or, while a stage does not hold it yet, under the one before."""
        wanted_ms = self._settings.default_deadline_ms if request.deadline_ms is None else request.deadline_ms
        deadline = Deadline.after_ms(min(wanted_ms, self._settings.max_deadline_ms))
        now_ms = time.time_ns() // 1_000_000
        shown = self._shown(request, tenant, now_ms // 1000)

        def pinned(release_id: str, *, may_repin: bool) -> RequestContext:
            return RequestContext(
                request_id=request_id,
                tenant=tenant,
                release_id=release_id,
                deadline=deadline,
                now_ms=now_ms,
                planned=planned,
                may_repin=may_repin,
            )

        current, *older = self._releases.held(tenant)
        ctx = pinned(current, may_repin=bool(older))
        try:
            return ctx, await self._pipeline.recommend(ctx, request, shown=shown), shown
        except ReleaseMissing:
            if not older:
                raise
        ctx = pinned(older[0], may_repin=False)
        return ctx, await self._pipeline.recommend(ctx, request, shown=shown), shown

    def _items(
        self,
        ctx: RequestContext,
        request: RecommendRequest,
        slate: Slate,
        bundle: ReleaseBundle,
        decision_id: str,
        evidence: list[Evidence],
    ) -> list[dict[str, Any]]:
        owner, now_s = owner_of(request), ctx.now_ms // 1000
        items = []
        for at, item_id in enumerate(slate.item_ids):
            items.append(
                {
                    "item_id": item_id,
                    "title": bundle.catalog.title(int(slate.chosen.rows[at])),
                    "score": round(float(slate.scores[at]), 6),
                    "score_kind": slate.score_kind,
                    "rank": at + 1,
                    "sources": source_names(int(slate.chosen.sources[at])),
                    "impression": self._signer.impression(ctx.tenant, owner, item_id, at + 1, decision_id, now_s=now_s),
                    "reason": None,
                    "reason_source": "none",
                    "evidence": evidence[at].to_dict() if evidence else None,
                }
            )
        return items

    async def _reasons(self, decision: _Decision, deadline_ms: float) -> AsyncIterator[Reason]:
        written = write_reasons(
            decision.ctx,
            self._explainer,
            decision.evidence,
            language=decision.language,
            deadline_ms=deadline_ms,
            cache=self._reason_cache,
        )
        # Closed here and now when the reader leaves, not when garbage is collected: it holds a call to the engine.
        async with aclosing(written) as reasons:  # type: ignore[type-var]
            async for reason in reasons:
                self._metrics.reason(reason.source)
                yield reason

    def _reasons_deadline(self, request: RecommendRequest, *, default_ms: int) -> float:
        wanted = default_ms if request.reasons_deadline_ms is None else request.reasons_deadline_ms
        return float(min(wanted, self._settings.max_reasons_deadline_ms))

    def _shown(self, request: RecommendRequest, tenant: str, now_s: int) -> Hashes:
        if request.cursor is None:
            return NOTHING_SHOWN
        try:
            return self._signer.open_cursor(request.cursor, tenant, owner_of(request), now_s=now_s)
        except TokenInvalid as error:
            raise InvalidRequest(str(error)) from error

    def _cursor(self, ctx: RequestContext, request: RecommendRequest, slate: Slate, shown: Hashes) -> str | None:
        if len(slate.item_ids) < request.k or slate.considered <= len(slate.item_ids):
            return None  # nothing is left for another page
        seen_so_far = np.concatenate([shown, hash64_array(slate.item_ids)])
        return self._signer.cursor(ctx.tenant, owner_of(request), seen_so_far, now_s=ctx.now_ms // 1000)

    def _close(self, decision: _Decision, route: str) -> dict[str, Any]:
        ctx, slate = decision.ctx, decision.slate
        level = level_of(ctx.degraded)
        self._metrics.answer(route, level.name, ctx.timings_ms["total"])
        for reason in ctx.degraded:
            self._metrics.degraded(reason)
        self._records.put(
            ServedRecord(
                decision_id=decision.decision_id,
                owner=owner_of(decision.request) if decision.request.profiling else None,
                release=ctx.release_id,
                served_ms=ctx.now_ms,
                item_ids=slate.item_ids,
                sources=[int(b) for b in slate.chosen.sources],
                scores=[float(s) for s in slate.scores],
                degraded=[str(r) for r in ctx.degraded],
            )
        )
        if self._decisions is not None and decision.evidence:
            explained = ExplainedList(
                decision.language, ctx.release_id, tuple(slate.item_ids), tuple(decision.evidence)
            )
            self._decisions.keep(ctx.tenant, decision.decision_id, explained)
        last = slate.user.last_event_ms()
        answer = {
            "request_id": ctx.request_id,
            "decision_id": decision.decision_id,
            "release": ctx.release_id,
            "profile_age_ms": None if last is None else max(0, ctx.now_ms - last),
            **_degradation(ctx),
            "next_cursor": decision.cursor,
            "items": decision.items,
            "timings_ms": _rounded(ctx.timings_ms),
        }
        if decision.request.debug:
            answer["debug"] = {"considered": slate.considered, "dropped": slate.dropped, "asked": slate.query.n}
        return answer


def owner_of(request: RecommendRequest) -> str:
    """Return what tokens and records are bound to: the user, else the session, else nobody."""
    return request.user_id or request.session_id or ""


def _attach(item: dict[str, Any], reason: Reason) -> None:
    item["reason"] = reason.text
    item["reason_source"] = reason.source


def _degradation(ctx: RequestContext) -> dict[str, Any]:
    actual = max(ctx.planned, level_of(ctx.degraded))
    return {
        "degraded": bool(ctx.degraded),
        "degraded_reasons": [str(r) for r in ctx.degraded],
        "degradation": {"planned": ctx.planned.name, "actual": DegradationLevel(actual).name},
    }


def _rounded(timings_ms: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in timings_ms.items()}
