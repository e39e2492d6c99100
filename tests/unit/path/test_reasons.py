"""Reasons never delay the list, say when the model did not write them, and free the engine when the reader leaves."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from models.explain.evidence import EMPTY, Evidence
from models.explain.explainer import Reason
from models.explain.positives import Attribute
from models.explain.reason_cache import TieredReasons
from models.explain.template import template_reason
from models.store.cache_store import MemoryCache
from models.store.port import StoreUnavailable
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.degradation import DegradationLevel, DegradedReason
from serve.fakes import FakeExplainer
from serve.ports import ReasonTask
from serve.reasons import write_reasons

INCOMPLETE = [DegradedReason.reasons_incomplete]


class Fallback:
    """An explainer whose writer fell back to a template for `why`."""

    def __init__(self, why) -> None:
        self.why = why

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        for slot, evidence in enumerate(task.evidence):
            yield Reason(slot, "A template.", "template", evidence, self.why)


def context(*, deadline_ms: float = 10_000, planned: DegradationLevel = DegradationLevel.full) -> RequestContext:
    return RequestContext("r", "main", "r-1", Deadline.after_ms(deadline_ms), now_ms=0, planned=planned)


async def sources(ctx: RequestContext, explainer, *, deadline_ms: float, items: int = 2) -> list[str]:
    written = write_reasons(ctx, explainer, [EMPTY] * items, language="en", deadline_ms=deadline_ms)
    return [reason.source async for reason in written]


@pytest.mark.parametrize("why", ["queue_full", "deadline", "engine"])
async def test_templates_in_the_place_of_the_model_are_noted(why) -> None:
    ctx = context()
    assert await sources(ctx, Fallback(why), deadline_ms=500) == ["template", "template"]
    assert ctx.degraded == INCOMPLETE


@pytest.mark.parametrize("why", ["no_llm", "checker"])
async def test_a_template_that_was_asked_for_or_is_better_is_nothing_less(why) -> None:
    ctx = context()
    await sources(ctx, Fallback(why), deadline_ms=0 if why == "no_llm" else 500)
    assert ctx.degraded == []


async def test_a_crowded_edge_says_that_the_model_was_left_out() -> None:
    for deadline_ms, items, noted in ((500, 2, INCOMPLETE), (0, 2, []), (500, 0, [])):
        ctx = context(planned=DegradationLevel.template_reasons)
        await sources(ctx, FakeExplainer(), deadline_ms=deadline_ms, items=items)
        assert ctx.degraded == noted


async def test_without_the_model_a_stuck_explainer_does_not_outlast_the_list_s_deadline() -> None:
    explainer = FakeExplainer()
    explainer.trouble.hangs = True
    ctx = context(deadline_ms=30)
    started = asyncio.get_running_loop().time()
    assert await sources(ctx, explainer, deadline_ms=0) == ["template", "template"]
    assert asyncio.get_running_loop().time() - started < 0.2
    assert ctx.degraded == [DegradedReason.explainer_unavailable]


async def test_a_reader_who_leaves_a_stream_frees_the_explainer_at_once(edge) -> None:
    edge.explainer._stops_after, edge.explainer.trouble.hangs = 1, True
    from serve.schemas import RecommendRequest

    events = edge.edge._recommend.stream(
        RecommendRequest(k=3, explain=True), tenant="main", request_id="r", planned=DegradationLevel.full
    )
    assert [(await anext(events))[0], (await anext(events))[0]] == ["items", "reason"]
    await events.aclose()
    assert edge.explainer.closed == 1


HEAT = Evidence("Heat", attributes=(Attribute("Crime", "genre"),))


class Never:
    """An explainer that must not be asked."""

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        raise AssertionError("asked")
        yield


async def reasons(ctx: RequestContext, explainer, cache, *, records, deadline_ms: float) -> list[tuple[int, str, str]]:
    written = write_reasons(ctx, explainer, records, language="en", deadline_ms=deadline_ms, cache=cache)
    return [(r.slot, r.source, r.text) async for r in written]


async def test_a_warm_list_asks_no_explainer() -> None:
    shared = MemoryCache()
    writer = TieredReasons("m", shared=shared)
    for evidence in (EMPTY, HEAT):
        writer.keep(evidence, "en", "main", template_reason(evidence))
    await writer.flush()
    for cache in (writer, TieredReasons("m", shared=shared)):
        got = await reasons(context(), Never(), cache, records=[EMPTY, HEAT], deadline_ms=500)
        assert [(slot, source) for slot, source, _ in got] == [(0, "cache"), (1, "cache")]


async def test_only_what_the_cache_lacks_is_asked_for_and_keeps_its_slot() -> None:
    cache, explainer = TieredReasons("m", shared=MemoryCache()), FakeExplainer()
    cache.keep(EMPTY, "en", "main", "Something different to explore.")
    got = await reasons(context(), explainer, cache, records=[HEAT, EMPTY, HEAT], deadline_ms=500)
    assert got == [
        (1, "cache", "Something different to explore."),
        (2, "llm", "Because of Heat."),
        (0, "llm", "Because of Heat."),
    ]
    assert [task.evidence for task in explainer.tasks] == [(HEAT, HEAT)]
    again = await reasons(context(), Never(), cache, records=[HEAT], deadline_ms=500)
    assert again == [(0, "cache", "Because of Heat.")]


async def test_without_the_model_a_silent_store_leaves_the_explainer_s_own_cache() -> None:
    shared = MemoryCache()
    cache = TieredReasons("m", shared=shared)
    ctx = context()
    assert (await reasons(ctx, Never(), cache, records=[HEAT], deadline_ms=0))[0][1] == "template"
    assert ctx.degraded == []
    shared.error = StoreUnavailable("gone")
    assert (await reasons(context(), FakeExplainer(), cache, records=[HEAT], deadline_ms=0))[0][1] == "cache"
