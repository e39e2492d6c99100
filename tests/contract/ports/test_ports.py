"""One contract per port, held by the class in process, by the fake, and by the client over a handle.

The clients run over `LocalHandle`, which pickles everything on its way as between processes; the members of a
coalesced call run through the same `each` as in a deployment.
"""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import SimpleNamespace

import numpy as np
import pytest

from models.candidates import Candidates
from models.encoder import HashEncoder
from models.events import Event, EventType, session_owner
from models.explain.evidence import build_evidence
from models.explain.explainer import ReasonWriter
from models.explain.generator import ScriptedGenerator
from models.explain.template import template_reason
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.store.memory import MemoryStore
from models.store.port import EventStatus, StoreTimeout, StoreUnavailable
from models.store.profiles import Linked, MemoryProfiles
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
    FakeEventSink,
    FakeExplainer,
    FakeFeatureFetcher,
    FakeProfiles,
    FakeQueryEncoder,
    FakeRanker,
    FakeRetriever,
    LocalHandle,
)
from serve.ports import ReasonTask
from serve.stages import (
    EngineRetriever,
    LocalExplainer,
    ModelRanker,
    StoreEventSink,
    StoreFeatureFetcher,
    StoreProfiles,
    TextQueryEncoder,
)

NOW = 1_700_000_000_000
KINDS = ("in process", "fake", "client")
BOUNDS = {"min_replicas": 1, "max_waiting": 64}


@pytest.fixture(scope="session", autouse=True)
def _ray_s_own_warnings() -> None:
    """Importing Ray Serve warns about its own use of pydantic; the clients import its exceptions when first called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.serve.exceptions  # noqa: F401


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def call(tiny) -> StageCall:
    return StageCall("main", tiny.release.release_id, 5000.0)


def hosted(name: str, method):
    """A handle of a deployment whose coalesced method `name` runs `method` per member."""

    async def many(members):
        return "replica-1", await each(members, method)

    return LocalHandle(SimpleNamespace(**{name: many}))


def events_of(owner: str, *items: str, start: int = 0) -> list[Event]:
    return [
        Event(f"{owner}:{n}", owner, EventType.click, NOW + start + n, item) for n, item in enumerate(items)
    ]  # fmt: skip


# --- FeatureFetcher -------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
async def fetcher(request):
    store = MemoryStore()
    await store.append("main", events_of("u1", "i01", "i02"), now_ms=NOW)
    await store.append("main", events_of(session_owner("s1"), "i03", start=10), now_ms=NOW)
    real = StoreFeatureFetcher(store)
    if request.param == "in process":
        return real
    if request.param == "client":
        return FeatureFetcherClient(hosted("fetch_many", lambda c, who: real.fetch(c, *who)), **BOUNDS)
    user = await store.fetch("main", "u1", None, timeout_s=1)
    session = await store.fetch("main", None, session_owner("s1"), timeout_s=1)
    return FakeFeatureFetcher({"u1": user}, {"s1": session})


@pytest.mark.parametrize(
    ("user", "session", "items"),
    [
        ("u1", None, ("i01", "i02")),
        (None, "s1", ("i03",)),
        ("u1", "s1", ("i01", "i02", "i03")),
        ("nobody", "s1", ("i03",)),
        ("u1", "nothing", ("i01", "i02")),
    ],
)
async def test_a_fetcher_merges_what_is_known_of_user_and_session(fetcher, call, user, session, items) -> None:
    got = await fetcher.fetch(call, user, session)
    assert got.item_ids == items and got.known and not got.stale and len(got.seen) == len(items)


@pytest.mark.parametrize("who", [("nobody", None), (None, "nothing"), (None, None)])
async def test_a_fetcher_knows_no_strangers_and_raises_nothing(fetcher, call, who) -> None:
    got = await fetcher.fetch(call, *who)
    assert not got.known and len(got) == 0


# --- Retriever ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def retriever(request, tiny, pool):
    real = EngineRetriever(tiny.bundle_of, pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeRetriever(tiny.bundle_of)
    return RetrieverClient(hosted("retrieve_many", real.retrieve), **BOUNDS)


async def test_a_retriever_returns_at_most_n_distinct_rows_best_first(retriever, call, tiny) -> None:
    for n in (1, 7, 500):
        found = await retriever.retrieve(call, RetrievalQuery(n=n, now_ms=NOW))
        rows = found.rows.tolist()
        assert len(rows) == len(set(rows)) == min(n, 40) and all(0 <= r < 40 for r in rows)
        assert (np.diff(found.scores) <= 0).all() and (found.sources > 0).all()
        assert len(found.sources) == len(found.source_scores) == len(found.scores) == len(rows)
        assert (found.rows.dtype, found.scores.dtype) == (np.int32, np.float32)


async def test_a_retriever_obeys_every_condition_of_the_query(retriever, call, tiny) -> None:
    store = MemoryStore()
    await store.append("main", events_of("u1", "i01", "i02"), now_ms=NOW)
    user = await store.fetch("main", "u1", None, timeout_s=1)
    query = RetrievalQuery(
        n=100,
        now_ms=NOW + 1000,
        user=user,
        exclude_items=("i05", "nowhere"),
        filters={"genre": AttributeFilter(any_of=("comedy",))},
    )
    found = await retriever.retrieve(call, query)
    ids = tiny.bundle.catalog.item_ids(found.rows)
    assert ids and not {"i01", "i02", "i05"} & set(ids)
    assert all("Comedy" in tiny.bundle.catalog.labels(int(r))["genre"] for r in found.rows)


async def test_a_retriever_ranks_a_given_list_and_skips_what_it_does_not_know(retriever, call, tiny) -> None:
    found = await retriever.retrieve(call, RetrievalQuery(n=9, now_ms=NOW, only_items=("i03", "nowhere", "i05")))
    assert sorted(tiny.bundle.catalog.item_ids(found.rows)) == ["i03", "i05"]


async def test_a_retriever_finds_nothing_where_nothing_is_allowed(retriever, call) -> None:
    nothing = RetrievalQuery(n=9, now_ms=NOW, filters={"genre": AttributeFilter(any_of=("Opera",))})
    assert len(await retriever.retrieve(call, nothing)) == 0


# --- Ranker ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def ranker(request, tiny, pool):
    real = ModelRanker(tiny.bundle_of, pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeRanker()
    return RankerClient(LocalHandle(real))


async def test_a_ranker_gives_one_score_per_candidate_in_the_order_given(ranker, call, tiny) -> None:
    query = RetrievalQuery(n=20, now_ms=NOW)
    found = tiny.bundle.engine.retrieve(query)
    scores = await ranker.score(call, query, found)
    assert scores.values.shape == (20,) and scores.values.dtype == np.float32
    assert scores.kind in ("probability", "rank_only")
    turned = np.arange(20)[::-1]
    assert (await ranker.score(call, query, found.take(turned))).values.tolist() == scores.values[turned].tolist()


async def test_a_ranker_scores_nothing_when_there_is_nothing(ranker, call) -> None:
    assert len((await ranker.score(call, RetrievalQuery(n=1, now_ms=NOW), Candidates.empty())).values) == 0


# --- QueryEncoder ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def encoder(request, pool):
    real = TextQueryEncoder(HashEncoder(32), pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeQueryEncoder(32)
    return QueryEncoderClient(hosted("encode_many", real.encode), **BOUNDS)


@pytest.mark.parametrize("text", ["a tale of water", "天使爱美丽 🎬", " ", "\x00\x1b[31m", "x" * 512])
async def test_an_encoder_returns_one_unit_vector_and_always_the_same(encoder, call, text: str) -> None:
    vector = await encoder.encode(call, text)
    assert vector.shape == (32,) and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(vector, await encoder.encode(call, text))


# --- EventSink ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in process", "fake"])
def sink(request):
    return StoreEventSink(MemoryStore()) if request.param == "in process" else FakeEventSink()


async def test_a_sink_answers_one_status_per_event_and_a_retry_is_harmless(sink) -> None:
    events = events_of("u1", "i01", "i02") + events_of(session_owner("s1"), "i01")
    assert list(await sink.append("main", events, now_ms=NOW)) == [EventStatus.accepted] * 3
    assert list(await sink.append("main", events[:1], now_ms=NOW)) == [EventStatus.duplicate]
    assert list(await sink.append("other", events[:1], now_ms=NOW)) == [EventStatus.accepted]
    assert list(await sink.append("main", [], now_ms=NOW)) == []


async def test_an_event_twice_in_one_list_is_accepted_once(sink) -> None:
    [event] = events_of("u1", "i01")
    assert list(await sink.append("main", [event, event], now_ms=NOW)) == ["accepted", "duplicate"]


# --- Profiles -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["in process", "fake"])
async def profiles(request):
    """Profiles of tenant main that hold two events of session s1 and one of user u1."""
    ours, theirs = events_of(session_owner("s1"), "i01", "i02"), events_of("u1", "i03")
    store = MemoryProfiles()
    await store.append("main", [*ours, *theirs], now_ms=NOW)
    if request.param == "in process":
        return StoreProfiles(store)
    fake = FakeProfiles()
    fake.users["main", "u1"] = await store.fetch("main", "u1", None, timeout_s=1)
    fake.sessions["main", "s1"] = await store.fetch("main", None, session_owner("s1"), timeout_s=1)
    return fake


async def test_profiles_are_read_by_user_or_session_and_by_tenant(profiles) -> None:
    assert (await profiles.read("main", "u1", None)).item_ids == ("i03",)
    assert (await profiles.read("main", None, "s1")).item_ids == ("i01", "i02")
    for tenant, user, session in (("other", "u1", "s1"), ("main", "s1", "u1"), ("main", None, None)):
        assert not (await profiles.read(tenant, user, session)).known


async def test_a_session_is_linked_once_and_then_unknown(profiles) -> None:
    assert await profiles.link("other", "u1", "s1", now_ms=NOW) == Linked(False, 0)
    assert await profiles.link("main", "u1", "s1", now_ms=NOW) == Linked(True, 2)
    assert await profiles.link("main", "u1", "s1", now_ms=NOW) == Linked(False, 0)
    found = await profiles.read("main", "u1", None)
    assert sorted(found.item_ids) == ["i01", "i02", "i03"] and len(found.seen) == 3
    assert not (await profiles.read("main", None, "s1")).known


@pytest.mark.parametrize("error", [StoreUnavailable("x"), StoreTimeout("x")])
async def test_profiles_that_the_store_cannot_reach_are_a_failed_dependency(error) -> None:
    for call in (
        StoreProfiles(Failing(error)).link("main", "u1", "s1", now_ms=NOW),
        StoreProfiles(Failing(error)).read("main", "u1", None),
    ):
        with pytest.raises(DependencyError):
            await call


# --- Explainer ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def explainer(request):
    real = LocalExplainer(ReasonWriter(ScriptedGenerator(lambda r: template_reason(r.evidence, r.language))))
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeExplainer()
    return ExplainerClient(LocalHandle(real))


@pytest.fixture
def task(tiny):
    def make(count: int, *, allow_llm: bool = True) -> ReasonTask:
        evidence = tuple(build_evidence([], r, catalog=tiny.bundle.catalog) for r in range(count))
        return ReasonTask(evidence, "en", "main", 2000.0, allow_llm)

    return make


@pytest.mark.parametrize("allow_llm", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_an_explainer_gives_exactly_one_reason_per_record(explainer, call, task, count, allow_llm) -> None:
    wanted = task(count, allow_llm=allow_llm)
    reasons = [r async for r in explainer.explain(call, wanted)]
    assert sorted(r.slot for r in reasons) == list(range(count))
    assert all(r.text and r.evidence == wanted.evidence[r.slot] for r in reasons)
    assert allow_llm or not any(r.source == "llm" for r in reasons)


async def test_an_explainer_may_be_left_in_the_middle(explainer, call, task) -> None:
    async with aclosing(explainer.explain(call, task(5))) as reasons:
        assert (await anext(reasons)).text


@pytest.mark.parametrize("kind", KINDS)
async def test_an_explainer_says_whether_its_model_lives(kind: str) -> None:
    generator = ScriptedGenerator(lambda r: template_reason(r.evidence, r.language))
    real, fake = LocalExplainer(ReasonWriter(generator)), FakeExplainer()
    fake.lives = False
    one = {"in process": real, "client": ExplainerClient(LocalHandle(real)), "fake": fake}[kind]
    assert await one.healthy() is False
    await generator.start()
    fake.lives = True
    assert await one.healthy() is True
    assert not await LocalExplainer(ReasonWriter(None)).healthy()


# --- What goes wrong ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("error", "ours"), [(StoreUnavailable("at 10.0.0.7"), DependencyError), (StoreTimeout("late"), DeadlineExceeded)]
)
@pytest.mark.parametrize("through_client", [False, True])
async def test_what_the_store_cannot_do_is_an_error_of_ours_that_tells_no_address(call, error, ours, through_client):
    real = StoreFeatureFetcher(Failing(error))
    client = FeatureFetcherClient(hosted("fetch_many", lambda c, who: real.fetch(c, *who)), **BOUNDS)
    fetcher = client if through_client else real
    with pytest.raises(ours) as raised:
        await fetcher.fetch(call, "u1", None)
    assert "10.0.0.7" not in str(raised.value)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreTimeout("late")])
async def test_events_that_are_not_durable_are_never_acknowledged(error) -> None:
    with pytest.raises(DependencyError):
        await StoreEventSink(Failing(error)).append("main", events_of("u1", "i01"), now_ms=NOW)


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
async def test_a_broken_model_is_a_failed_dependency_and_its_message_stays_inside(call, pool, through_client) -> None:
    retriever, ranker = EngineRetriever(lambda *_: Broken(), pool), ModelRanker(lambda *_: Broken(), pool)
    encoder = TextQueryEncoder(Broken(), pool)
    if through_client:
        retriever = RetrieverClient(hosted("retrieve_many", retriever.retrieve), **BOUNDS)
        encoder = QueryEncoderClient(hosted("encode_many", encoder.encode), **BOUNDS)
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


async def test_a_replica_that_lacks_the_release_costs_one_retry(call, tiny, pool) -> None:
    real = EngineRetriever(tiny.bundle_of, pool)
    query = RetrievalQuery(n=5, now_ms=NOW)
    client = RetrieverClient(hosted("retrieve_many", lacking(1, real.retrieve)), **BOUNDS)
    assert len(await client.retrieve(call, query)) == 5
    ranker = RankerClient(LocalHandle(SimpleNamespace(score=lacking(1, ModelRanker(tiny.bundle_of, pool).score))))
    assert len((await ranker.score(call, query, tiny.bundle.engine.retrieve(query))).values) == 5
    with pytest.raises(ReleaseMissing):
        await RetrieverClient(hosted("retrieve_many", lacking(2, real.retrieve)), **BOUNDS).retrieve(call, query)


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
