"""One contract per port, held by the class in process, by the fake, and by the client over a handle.

The clients run over `LocalHandle`, which pickles everything on its way as between processes; the members of a
coalesced call run through the same `each` as in a deployment.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from models.candidates import Candidates
from models.declared import Declaration
from models.encoder import HashEncoder
from models.events import Event, EventType, session_owner
from models.explain.explainer import ReasonWriter
from models.explain.generator import ScriptedGenerator
from models.explain.template import template_reason
from models.hosted import ShardQuestion, Spread, packed
from models.index import FlatIndex
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.store.memory import MemoryStore
from models.store.port import EventStatus
from models.store.profiles import Linked, MemoryProfiles
from serve.clients import (
    ExplainerClient,
    FeatureFetcherClient,
    IndexShardClient,
    QueryEncoderClient,
    RankerClient,
    RetrieverClient,
)
from serve.fakes import (
    FakeEventSink,
    FakeExplainer,
    FakeFeatureFetcher,
    FakeIndexShard,
    FakeProfiles,
    FakeQueryEncoder,
    FakeRanker,
    FakeRetriever,
    LocalHandle,
)
from serve.index_shards import ShareSearcher
from serve.ranking import ModelRanker
from serve.stages import (
    EngineRetriever,
    LocalExplainer,
    StoreEventSink,
    StoreFeatureFetcher,
    StoreProfiles,
    TextQueryEncoder,
)

NOW = 1_700_000_000_000
KINDS = ("in process", "fake", "client")


def events_of(owner: str, *items: str, start: int = 0) -> list[Event]:
    return [
        Event(f"{owner}:{n}", owner, EventType.click, NOW + start + n, item) for n, item in enumerate(items)
    ]  # fmt: skip


# --- FeatureFetcher -------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
async def fetcher(request, client_of):
    store = MemoryStore()
    await store.append("main", events_of("u1", "i01", "i02"), now_ms=NOW)
    await store.append("main", events_of(session_owner("s1"), "i03", start=10), now_ms=NOW)
    real = StoreFeatureFetcher(store)
    if request.param == "in process":
        return real
    if request.param == "client":
        return client_of(FeatureFetcherClient, "fetch_many", lambda c, who: real.fetch(c, *who))
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
def retriever(request, tiny, pool, client_of):
    real = EngineRetriever(tiny.bundle_of, pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeRetriever(tiny.bundle_of)
    return client_of(RetrieverClient, "retrieve_many", real.retrieve)


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


# --- IndexShard -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def shard(request, tiny, pool, client_of):
    host = replace(tiny.bundle, spread=Spread(1, own=0))
    real = ShareSearcher(lambda *_: host, pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeIndexShard(host.share)
    return client_of(IndexShardClient, "search_many", real.search)


async def test_an_index_shard_answers_with_its_nearest_rows_and_obeys_the_mask(shard, call, tiny) -> None:
    vectors = np.asarray(tiny.bundle.embeddings)
    few, most = np.ones(len(vectors), bool), np.zeros(len(vectors), bool)
    few[3], most[[3, 5, 7]] = False, True
    for allowed in (None, few, most):
        sent = None if allowed is None else packed(allowed)
        rows, scores = await shard.search(call, ShardQuestion(vectors[3], 5, sent))
        wanted = FlatIndex(vectors).search(vectors[3], 5, allowed=allowed)
        assert np.allclose(scores, wanted[1], atol=1e-6) and (np.diff(scores) <= 0).all()
        assert len(set(rows.tolist())) == len(wanted[0]) and (allowed is None or allowed[rows].all())


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
def encoder(request, pool, client_of):
    real = TextQueryEncoder(HashEncoder(32), pool)
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeQueryEncoder(32)
    return client_of(QueryEncoderClient, "encode_many", real.encode)


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


async def test_a_declaration_is_read_replaced_linked_and_taken_back(profiles) -> None:
    old, new = Declaration((("genre", "Drama"),), None, NOW), Declaration((("genre", "Western"),), None, NOW + 1)
    await profiles.declare("main", "u1", None, old, now_ms=NOW)
    await profiles.declare("main", None, "s1", new, now_ms=NOW)
    await profiles.declare("main", "u9", None, new, now_ms=NOW)
    assert (await profiles.read("main", "u1", None)).declared == old
    assert (await profiles.read("main", "u1", "s1")).declared == new
    assert (await profiles.read("other", "u1", None)).declared is None
    stranger = await profiles.read("main", "u9", None)
    assert stranger.declared == new and not stranger.known
    await profiles.link("main", "u1", "s1", now_ms=NOW)
    found = await profiles.read("main", "u1", None)
    assert found.declared == new and len(found) == 3
    await profiles.declare("main", "u1", None, Declaration(), now_ms=NOW)
    assert (await profiles.read("main", "u1", None)).declared is None


async def test_a_session_is_linked_once_and_then_unknown(profiles) -> None:
    assert await profiles.link("other", "u1", "s1", now_ms=NOW) == Linked(False, 0)
    assert await profiles.link("main", "u1", "s1", now_ms=NOW) == Linked(True, 2)
    assert await profiles.link("main", "u1", "s1", now_ms=NOW) == Linked(False, 0)
    found = await profiles.read("main", "u1", None)
    assert sorted(found.item_ids) == ["i01", "i02", "i03"] and len(found.seen) == 3
    assert not (await profiles.read("main", None, "s1")).known


# --- Explainer ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def explainer(request):
    real = LocalExplainer(ReasonWriter(ScriptedGenerator(lambda r: template_reason(r.evidence, r.language))))
    if request.param == "in process":
        return real
    if request.param == "fake":
        return FakeExplainer()
    return ExplainerClient(LocalHandle(real))


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
