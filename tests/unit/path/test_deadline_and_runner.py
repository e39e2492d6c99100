"""Deadlines, budgets and the one place with fail-open rules."""

import asyncio

import pytest

from serve.context import RequestContext, StageCall
from serve.deadline import Deadline, FakeClock
from serve.degradation import DegradationLevel, DegradedReason, level_of, planned_level
from serve.errors import (
    ClientError,
    ContractViolation,
    DeadlineExceeded,
    DependencyError,
    InvalidRequest,
    OverloadError,
    RecommendError,
    ReleaseMissing,
)
from serve.runner import SilentRecorder, StagePolicy, run_stage

RANK = StagePolicy("rank", budget_ms=50, minimum_ms=5)


def context(deadline: Deadline | None = None) -> RequestContext:
    return RequestContext("req", "main", "r-1", deadline or Deadline.after_ms(10_000), now_ms=0)


def test_a_deadline_counts_down_and_never_below_zero() -> None:
    clock = FakeClock()
    deadline = Deadline.after_ms(100, clock=clock)
    assert deadline.remaining_ms() == pytest.approx(100)
    clock.advance(0.04)
    assert deadline.remaining_ms() == pytest.approx(60)
    clock.advance(5)
    assert deadline.remaining_ms() == 0


def test_a_capped_deadline_never_ends_later_than_the_request_s() -> None:
    clock = FakeClock()
    deadline = Deadline.after_ms(100, clock=clock)
    assert deadline.capped(30).remaining_ms() == pytest.approx(30)
    assert deadline.capped(300).remaining_ms() == pytest.approx(100)
    clock.advance(0.09)
    assert deadline.capped(30).remaining_ms() == pytest.approx(10)


def test_a_stage_call_carries_what_is_left_and_nothing_about_the_user() -> None:
    clock = FakeClock()
    ctx = context(Deadline.after_ms(100, clock=clock))
    clock.advance(0.03)
    assert StageCall.of(ctx) == StageCall("main", "r-1", pytest.approx(70))


async def test_a_stage_that_answers_gives_its_result_and_its_time() -> None:
    ctx, recorder = context(), SilentRecorder()

    async def call(stage: StageCall) -> str:
        assert 0 < stage.remaining_ms <= 50 and stage.release_id == "r-1"
        return "answer"

    assert await run_stage(ctx, RANK, call, lambda: "fallback", recorder) == "answer"
    assert ctx.degraded == [] and ctx.timings_ms["rank"] >= 0
    assert [(n, o) for n, o, _ in recorder.seen] == [("rank", "ok")]


async def test_a_stage_that_never_answers_is_cancelled_when_its_budget_ends() -> None:
    ctx, recorder, cancelled = context(), SilentRecorder(), []

    async def call(stage: StageCall) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return "never"

    quick = StagePolicy("rank", budget_ms=20, minimum_ms=5)
    assert await run_stage(ctx, quick, call, lambda: "fallback", recorder) == "fallback"
    assert cancelled == [True]
    assert ctx.degraded == [DegradedReason.rank_timeout]
    assert 1 <= ctx.timings_ms["rank"] < 1000  # a busy machine may spend part of the budget before the start
    assert recorder.seen[0][:2] == ("rank", "timeout")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (DependencyError("away"), DegradedReason.rank_unavailable),
        (OverloadError("full"), DegradedReason.rank_unavailable),
        (ReleaseMissing("not here"), DegradedReason.rank_unavailable),
        (RecommendError("anything"), DegradedReason.rank_unavailable),
        (DeadlineExceeded("late"), DegradedReason.rank_timeout),
        (TimeoutError(), DegradedReason.rank_timeout),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else str(v),
)
async def test_a_stage_that_fails_is_replaced_and_the_answer_says_so(error: Exception, reason: DegradedReason) -> None:
    ctx = context()

    async def call(stage: StageCall) -> str:
        raise error

    assert await run_stage(ctx, RANK, call, lambda: "fallback", SilentRecorder()) == "fallback"
    assert ctx.degraded == [reason]


@pytest.mark.parametrize("error", [ContractViolation("three scores for two"), InvalidRequest("no"), ClientError("no")])
async def test_programmer_errors_and_client_errors_never_fail_open(error: Exception) -> None:
    ctx = context()

    async def call(stage: StageCall) -> str:
        raise error

    with pytest.raises(type(error)):
        await run_stage(ctx, RANK, call, lambda: "fallback", SilentRecorder())
    assert ctx.degraded == []


async def test_a_stage_below_its_minimum_is_skipped_and_never_started() -> None:
    clock = FakeClock()
    ctx, recorder = context(Deadline.after_ms(4, clock=clock)), SilentRecorder()

    async def call(stage: StageCall) -> str:
        raise AssertionError("started")

    assert await run_stage(ctx, RANK, call, lambda: "fallback", recorder) == "fallback"
    assert ctx.degraded == [DegradedReason.rank_skipped]
    assert recorder.seen == [("rank", "skipped", 0.0)]


async def test_a_caller_who_leaves_cancels_the_stage_without_a_fallback() -> None:
    ctx, started = context(), asyncio.Event()

    async def call(stage: StageCall) -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    long = StagePolicy("rank", budget_ms=5000, minimum_ms=5)
    task = asyncio.create_task(run_stage(ctx, long, call, lambda: "fallback", SilentRecorder()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ctx.degraded == []


async def test_a_query_that_is_not_embedded_has_one_reason_whatever_failed() -> None:
    ctx = context()

    async def call(stage: StageCall) -> None:
        raise DependencyError("away")

    await run_stage(ctx, StagePolicy("query", 50, 1), call, lambda: None, SilentRecorder())
    await run_stage(ctx, StagePolicy("query", 0.5, 1), call, lambda: None, SilentRecorder())
    assert ctx.degraded == [DegradedReason.query_not_understood]


def test_the_ladder_goes_from_templates_to_popular() -> None:
    assert level_of([]) is DegradationLevel.full
    rungs = [
        (DegradedReason.explainer_unavailable, DegradationLevel.template_reasons),
        (DegradedReason.fewer_candidates, DegradationLevel.fewer_candidates),
        (DegradedReason.rank_timeout, DegradationLevel.no_ranker),
        (DegradedReason.features_unavailable, DegradationLevel.stale_profile),
        (DegradedReason.retrieve_skipped, DegradationLevel.popular),
    ]
    assert [level_of([r]) for r, _ in rungs] == [rung for _, rung in rungs]
    assert level_of([DegradedReason.retrieve_timeout, DegradedReason.fewer_items]) is DegradationLevel.popular


def test_load_gives_up_reasons_first_and_the_ranker_last() -> None:
    planned = [planned_level(n, capacity=100) for n in range(0, 101)]
    assert planned == sorted(planned)
    assert planned[70] is DegradationLevel.full and planned[71] is DegradationLevel.template_reasons
    assert planned[86] is DegradationLevel.fewer_candidates and planned[96] is DegradationLevel.no_ranker
    assert planned_level(5, capacity=0) is DegradationLevel.no_ranker
