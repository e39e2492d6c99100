"""Reasons for a slate: from the cache, else from the explainer, and a template in every gap.

Never raises and never delays the list: a cache or an explainer that is slow, restarting or gone costs only the LLM's
words. What the cache holds needs no call to the explainer at all. Called by the recommend service.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from models.explain.evidence import Evidence
from models.explain.explainer import Reason
from models.explain.reason_cache import TieredReasons
from models.explain.template import template_reason
from serve.context import RequestContext, StageCall
from serve.degradation import DegradationLevel, DegradedReason
from serve.errors import ContractViolation
from serve.ports import Explainer, ReasonTask

log = logging.getLogger("raycommend.reasons")
CACHE_LOOKUP_MS = 50.0
"""What an answer without time for the LLM may wait for cached reasons."""
SLACK_MS = 250.0
"""Beyond its budget: the explainer itself answers with templates when its own clock runs out."""
_NOT_WRITTEN = frozenset({"queue_full", "deadline", "engine"})
"""Why a template stands where the caller gave the model time; a sentence that the checker refused is no shortage."""


async def write_reasons(
    ctx: RequestContext,
    explainer: Explainer,
    evidence: Sequence[Evidence],
    *,
    language: str,
    deadline_ms: float,
    cache: TieredReasons | None = None,
) -> AsyncIterator[Reason]:
    """Yield exactly one reason per record, in the order they are finished, within `deadline_ms` (0: no LLM).

    Cached ones come first. Templates where the caller gave the model time are noted in `ctx`.
    """
    missing = dict(enumerate(evidence))
    complete, left_ms = not missing, deadline_ms
    if cache is not None and missing:
        started = asyncio.get_running_loop().time()
        found = await cache.find(evidence, language=language, tenant=ctx.tenant)
        complete = found.complete
        left_ms = max(1.0, deadline_ms - (asyncio.get_running_loop().time() - started) * 1000.0)
        for slot, text in enumerate(found.texts):
            if text is not None:
                del missing[slot]
                yield Reason(slot=slot, text=text, source="cache", evidence=evidence[slot])
    allow_llm = deadline_ms > 0 and ctx.planned < DegradationLevel.template_reasons
    if missing and deadline_ms > 0 and not allow_llm:
        ctx.degrade(DegradedReason.reasons_incomplete)
    if missing and (allow_llm or not complete):
        async with aclosing(_asked(ctx, explainer, missing, language, left_ms if allow_llm else 0.0)) as reasons:  # type: ignore[type-var]
            async for reason in reasons:
                if missing.pop(reason.slot, None) is not None:
                    if cache is not None and reason.source in ("llm", "cache"):
                        cache.remember(reason.evidence, language, ctx.tenant, reason.text)
                    yield reason
    for slot, record in missing.items():
        yield template_for(slot, record, language)


async def _asked(
    ctx: RequestContext, explainer: Explainer, records: dict[int, Evidence], language: str, deadline_ms: float
) -> AsyncIterator[Reason]:
    """Yield what the explainer gives in time for `records` (by slot); without a deadline it may only look up."""
    allow_llm = deadline_ms > 0
    budget_ms = deadline_ms if allow_llm else min(CACHE_LOOKUP_MS, max(1.0, ctx.deadline.remaining_ms()))
    call = StageCall(ctx.tenant, ctx.release_id, budget_ms)
    slots = list(records)
    task = ReasonTask(tuple(records.values()), language, ctx.tenant, budget_ms, allow_llm)
    # Without the model it is the list that waits, so nothing may be added to its deadline.
    most_ms = budget_ms + SLACK_MS if allow_llm else min(budget_ms + SLACK_MS, max(1.0, ctx.deadline.remaining_ms()))
    ends = asyncio.get_running_loop().time() + most_ms / 1000.0
    try:
        async with aclosing(explainer.explain(call, task)) as stream:  # type: ignore[type-var]
            while (reason := await _next(stream, ends)) is not None:
                if reason.fallback in _NOT_WRITTEN:
                    ctx.degrade(DegradedReason.reasons_incomplete)
                yield replace(reason, slot=slots[reason.slot])
    except (ContractViolation, GeneratorExit, asyncio.CancelledError):
        raise
    except Exception as error:
        log.warning("explainer failed (%s); templates stand in", type(error).__name__)
        ctx.degrade(DegradedReason.explainer_unavailable)


async def _next(stream: AsyncIterator[Reason], ends: float) -> Reason | None:
    """Return the next reason or None at the end.

    The clock covers the waiting only: around a `yield` it would cancel whoever reads the reasons slowly.
    """
    async with asyncio.timeout_at(ends):
        return await anext(stream, None)


def template_for(slot: int, evidence: Evidence, language: str) -> Reason:
    """Return the deterministic reason of one record."""
    return Reason(slot=slot, text=template_reason(evidence, language), source="template", evidence=evidence)
