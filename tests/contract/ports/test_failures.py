"""What goes wrong behind a port: stores away, models that raise, replicas that lack a release, callers that leave.

Through the class in process and through the client over a handle alike, an error becomes one of ours, and no message
holds an address or what somebody sent.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from models.candidates import Candidates
from models.declared import Declaration
from models.events import Event, EventType
from models.retrieval.query import RetrievalQuery
from models.store.port import StoreTimeout, StoreUnavailable
from models.store.profiles import MemoryProfiles
from serve.clients import ExplainerClient, FeatureFetcherClient, QueryEncoderClient, RankerClient, RetrieverClient
from serve.context import StageCall
from serve.deployments.batches import each
from serve.errors import (
    ContractViolation,
    DeadlineExceeded,
    DependencyError,
    OverloadError,
    RecommendError,
    ReleaseMissing,
)
from serve.fakes import (
    FakeExplainer,
    FakeRanker,
    LocalHandle,
)
from serve.ranking import ModelRanker
from serve.stages import (
    EngineRetriever,
    StoreEventSink,
    StoreFeatureFetcher,
    StoreProfiles,
    TextQueryEncoder,
)

NOW = 1_700_000_000_000


class Failing(MemoryProfiles):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def fetch(self, *args, **named):
        raise self.error

    async def append(self, *args, **named):
        raise self.error

    async def link(self, *args, **named):
        raise self.error

    async def declare(self, *args, **named):
        raise self.error


@pytest.mark.parametrize(
    ("error", "ours"), [(StoreUnavailable("at 10.0.0.7"), DependencyError), (StoreTimeout("late"), DeadlineExceeded)]
)
@pytest.mark.parametrize("through_client", [False, True])
async def test_what_the_store_cannot_do_is_an_error_of_ours_that_tells_no_address(
    call, error, ours, through_client, client_of
):
    real = StoreFeatureFetcher(Failing(error))
    client = client_of(FeatureFetcherClient, "fetch_many", lambda c, who: real.fetch(c, *who))
    fetcher = client if through_client else real
    with pytest.raises(ours) as raised:
        await fetcher.fetch(call, "u1", None)
    assert "10.0.0.7" not in str(raised.value)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreTimeout("late")])
async def test_events_that_are_not_durable_are_never_acknowledged(error) -> None:
    with pytest.raises(DependencyError):
        await StoreEventSink(Failing(error)).append(
            "main", [Event("u1:0", "u1", EventType.click, NOW, "i01")], now_ms=NOW
        )


@pytest.mark.parametrize("error", [StoreUnavailable("x"), StoreTimeout("x")])
async def test_profiles_that_the_store_cannot_reach_are_a_failed_dependency(error) -> None:
    for call in (
        StoreProfiles(Failing(error)).link("main", "u1", "s1", now_ms=NOW),
        StoreProfiles(Failing(error)).read("main", "u1", None),
        StoreProfiles(Failing(error)).declare("main", "u1", None, Declaration(), now_ms=NOW),
    ):
        with pytest.raises(DependencyError):
            await call


class Broken:
    """A release whose engine, ranker and encoder raise what native code raises."""

    score_kind = "rank_only"
    dimension = 32
    catalog = range(1000)

    @property
    def engine(self):
        return self

    @property
    def ranker(self):
        return self

    def retrieve(self, query):
        raise RuntimeError("u-Zebra77")

    def score(self, query, candidates):
        raise FloatingPointError("u-Zebra77")

    def encode(self, texts):
        raise MemoryError("u-Zebra77")


@pytest.mark.parametrize("through_client", [False, True])
async def test_a_broken_model_is_a_failed_dependency_and_its_message_stays_inside(
    call, pool, through_client, client_of
) -> None:
    retriever, ranker = EngineRetriever(lambda *_: Broken(), pool), ModelRanker(lambda *_: Broken(), pool)
    encoder = TextQueryEncoder(Broken(), pool)
    if through_client:
        retriever = client_of(RetrieverClient, "retrieve_many", retriever.retrieve)
        encoder = client_of(QueryEncoderClient, "encode_many", encoder.encode)
        ranker = RankerClient(LocalHandle(ranker))
    query = RetrievalQuery(n=1, now_ms=NOW)
    for work in (
        lambda: retriever.retrieve(call, query),
        lambda: ranker.score(call, query, Candidates.empty()),
        lambda: encoder.encode(call, "text"),
    ):
        with pytest.raises(DependencyError) as raised:
            await work()
        assert "Zebra77" not in str(raised.value)


async def test_a_ranker_that_breaks_the_contract_is_a_bug_through_every_boundary(call, pool, tiny) -> None:
    class Short(Broken):
        def score(self, query, candidates):
            return candidates.scores[:-1]

    found = tiny.bundle.engine.retrieve(RetrievalQuery(n=3, now_ms=NOW))
    real = ModelRanker(lambda *_: Short(), pool)
    for ranker in (real, RankerClient(LocalHandle(real))):
        with pytest.raises(ContractViolation):
            await ranker.score(call, RetrievalQuery(n=3, now_ms=NOW), found)


def lacking(times: int, then):
    """A stage whose replica lacks the release, or is gone, for the first `times` calls."""
    left = [times]

    async def run(*args):
        if left[0]:
            left[0] -= 1
            raise ReleaseMissing("not here")
        return await then(*args)

    return run


async def test_a_replica_that_lacks_the_release_costs_one_retry(call, tiny, pool, client_of) -> None:
    real = EngineRetriever(tiny.bundle_of, pool)
    query = RetrievalQuery(n=5, now_ms=NOW)
    client = client_of(RetrieverClient, "retrieve_many", lacking(1, real.retrieve))
    assert len(await client.retrieve(call, query)) == 5
    ranker = RankerClient(LocalHandle(SimpleNamespace(score=lacking(1, ModelRanker(tiny.bundle_of, pool).score))))
    assert len((await ranker.score(call, query, tiny.bundle.engine.retrieve(query))).values) == 5
    with pytest.raises(ReleaseMissing):
        await client_of(RetrieverClient, "retrieve_many", lacking(2, real.retrieve)).retrieve(call, query)


async def test_a_bug_in_a_replica_is_not_tried_twice(call) -> None:
    ranker = FakeRanker()
    ranker.trouble.error = ContractViolation("bug")
    with pytest.raises(ContractViolation):
        await RankerClient(LocalHandle(ranker)).score(call, RetrievalQuery(n=1, now_ms=NOW), Candidates.empty())
    assert ranker.trouble.calls == 1


async def test_members_of_one_call_fail_and_run_late_on_their_own(call) -> None:
    async def run(stage: StageCall, member: str):
        if member == "hangs":
            await asyncio.Event().wait()
        if member == "fails":
            raise ValueError("u-Zebra77")
        if member == "ours":
            raise OverloadError("full", retry_after_s=3.0)
        return member

    short = StageCall("main", "r", 20.0)
    results = await each([(short, "hangs"), (call, "fails"), (call, "ours"), (call, "fine")], run)
    assert [type(r) for r in results] == [DeadlineExceeded, DependencyError, OverloadError, str]
    assert "Zebra77" not in str(results[1]) and results[2].retry_after_s == 3.0


async def test_cancelling_a_caller_cancels_its_call_in_the_replica(call, tiny) -> None:
    ranker = FakeRanker()
    ranker.trouble.hangs = True
    handle = LocalHandle(ranker)
    query = RetrievalQuery(n=1, now_ms=NOW)
    task = asyncio.create_task(RankerClient(handle).score(call, query, Candidates.empty()))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert handle.journal.cancelled == 1 and ranker.trouble.calls == 1


async def test_leaving_a_stream_of_reasons_cancels_it_in_the_replica_and_finishing_it_does_not(call, task) -> None:
    handle = LocalHandle(FakeExplainer())
    client = ExplainerClient(handle)
    assert len([r async for r in client.explain(call, task(3))]) == 3
    assert handle.journal.cancelled == 0
    async with aclosing(client.explain(call, task(3))) as reasons:
        await anext(reasons)
    assert handle.journal.cancelled == 1


async def test_errors_of_ray_become_errors_of_ours() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    from serve.clients import translated

    async def failing(error: BaseException):
        raise error

    ours = RayTaskError("score", "traceback", ReleaseMissing("not here")).as_instanceof_cause()
    for error, wanted in [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), OverloadError),
        (ActorDiedError(), DependencyError),
        (DeploymentUnavailableError("x"), DependencyError),
        (RayTaskError("score", "traceback", ValueError("u-Zebra77")), DependencyError),
        (RayTaskError("score", "traceback", ReleaseMissing("not here")), ReleaseMissing),
        (ours, ReleaseMissing),
        (ValueError("u-Zebra77"), DependencyError),
        (InterruptedError("grpc"), DependencyError),
        (ContractViolation("bug"), ContractViolation),
        (TimeoutError(), TimeoutError),
        (StopAsyncIteration(), StopAsyncIteration),
        (asyncio.CancelledError(), asyncio.CancelledError),
    ]:
        with pytest.raises(wanted) as raised:
            await translated(failing(error))
        if isinstance(raised.value, RecommendError):
            assert ("Zebra77" not in str(raised.value) and type(raised.value) is wanted) or error is ours
