"""The request path over fakes: whatever fails, there is an answer, and it says what it lacks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from models.candidates import Source
from models.catalog import ItemCatalog, write_catalog
from models.features import features_from_events
from models.ids import hash64_array
from serve.context import RequestContext
from serve.deadline import Deadline, FakeClock
from serve.degradation import DegradationLevel, DegradedReason, level_of
from serve.errors import ContractViolation, DeadlineExceeded, DependencyError, InvalidRequest, OverloadError
from serve.fakes import FakeFeatureFetcher, FakeQueryEncoder, FakeRanker, FakeRetriever
from serve.pipeline import RecommendationPipeline
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever

QUICK = StageBudget(budget_ms=20, minimum_ms=1)


def profile(*ids: str):
    n = len(ids)
    return features_from_events(
        list(ids), np.full(n, 2, np.uint8), np.ones(n, np.float32), np.arange(n, dtype=np.int64)
    )


class Path:
    """A pipeline over fakes."""

    def __init__(self, bundle, *, settings=None, ranker=None, retriever=None) -> None:
        self.fetcher = FakeFeatureFetcher({"u1": profile("i01", "i02")}, {"s1": profile("i03")})
        self.encoder = FakeQueryEncoder()
        self.retriever = retriever or FakeRetriever(lambda tenant, release: bundle)
        self.ranker = ranker or FakeRanker()
        self.recorder = SilentRecorder()
        self.pipeline = RecommendationPipeline(
            fetcher=self.fetcher,
            encoder=self.encoder,
            retriever=self.retriever,
            ranker=self.ranker,
            bundle_of=lambda tenant, release: bundle,
            settings=settings or PipelineSettings(),
            recorder=self.recorder,
        )

    async def ask(self, ctx=None, *, shown=None, **wish):
        ctx = ctx or context()
        extra = {} if shown is None else {"shown": shown}
        return ctx, await self.pipeline.recommend(ctx, RecommendRequest(**{"user_id": "u1", **wish}), **extra)


def context(*, clock=None, ms=5000.0, planned=DegradationLevel.full) -> RequestContext:
    deadline = Deadline.after_ms(ms, clock=clock) if clock else Deadline.after_ms(ms)
    return RequestContext("req", "main", "r", deadline, now_ms=1_700_000_000_000, planned=planned)


@pytest.fixture
def path(tiny) -> Path:
    return Path(tiny.bundle)


async def test_a_full_answer_has_k_items_in_the_ranker_s_order_and_nothing_to_confess(path: Path) -> None:
    ctx, slate = await path.ask(k=7)
    assert len(slate.item_ids) == 7 and ctx.degraded == []
    assert slate.scores.tolist() == sorted(slate.scores.tolist(), reverse=True)
    assert slate.score_kind == "probability"
    assert not {"i01", "i02"} & set(slate.item_ids)
    assert set(ctx.timings_ms) == {"features", "retrieve", "rank", "select"}
    assert [(n, o) for n, o, _ in path.recorder.seen] == [("features", "ok"), ("retrieve", "ok"), ("rank", "ok")]


async def test_the_same_request_gives_the_same_items(path: Path) -> None:
    lists = [(await path.ask(k=20, diversity=0.3))[1].item_ids for _ in range(3)]
    assert lists[0] == lists[1] == lists[2]


@pytest.mark.parametrize("diversity", [0.0, 0.4])
async def test_a_list_holds_at_most_so_many_items_of_a_category(tiny, diversity) -> None:
    def most(slate) -> int:
        labels = [tiny.bundle.catalog.labels(int(row)).get("genre", ()) for row in slate.chosen.rows]
        return max(sum(name in own for own in labels) for name in {n for own in labels for n in own})

    capped = PipelineSettings(category_caps={"genre": 1})
    _, free = await Path(tiny.bundle).ask(k=2, diversity=diversity, exclude_items=["i18"])
    _, held = await Path(tiny.bundle, settings=capped).ask(k=2, diversity=diversity, exclude_items=["i18"])
    assert most(free) == 2 or diversity
    assert most(held) == 1
    assert len(held.item_ids) == 2


FAILURES = [
    ("fetcher", DependencyError("away"), "features_unavailable", DegradationLevel.stale_profile),
    ("fetcher", DeadlineExceeded("late"), "features_timeout", DegradationLevel.stale_profile),
    ("retriever", DependencyError("gone"), "retrieve_unavailable", DegradationLevel.popular),
    ("retriever", OverloadError("full"), "retrieve_unavailable", DegradationLevel.popular),
    ("ranker", DependencyError("gone"), "rank_unavailable", DegradationLevel.no_ranker),
    ("encoder", DependencyError("gone"), "query_not_understood", DegradationLevel.fewer_candidates),
]


@pytest.mark.parametrize(("stage", "error", "reason", "rung"), FAILURES)
async def test_a_stage_that_fails_costs_its_rung_and_never_the_answer(tiny, stage, error, reason, rung) -> None:
    path = Path(tiny.bundle)
    getattr(path, stage).trouble.error = error
    ctx, slate = await path.ask(query="water")
    assert ctx.degraded == [DegradedReason(reason)] and level_of(ctx.degraded) is rung
    assert len(slate.item_ids) == 10


@pytest.mark.parametrize(
    ("stage", "name", "reason"),
    [
        ("fetcher", "features", "features_timeout"),
        ("encoder", "query", "query_not_understood"),
        ("retriever", "retrieve", "retrieve_timeout"),
        ("ranker", "rank", "rank_timeout"),
    ],
)
async def test_a_stage_that_hangs_is_given_up_after_its_budget(tiny, stage, name, reason) -> None:
    path = Path(tiny.bundle, settings=PipelineSettings(**{name: QUICK}))
    getattr(path, stage).trouble.hangs = True
    ctx, slate = await path.ask(query="water")
    assert ctx.degraded == [DegradedReason(reason)] and len(slate.item_ids) == 10
    assert 1 <= ctx.timings_ms[name] < 2000  # a busy machine may spend part of the budget before the start


async def test_everything_failing_still_gives_popular_items(path: Path) -> None:
    for fake in (path.fetcher, path.encoder, path.retriever, path.ranker):
        fake.trouble.error = DependencyError("away")
    ctx, slate = await path.ask(query="water")
    assert len(slate.item_ids) == 10 and level_of(ctx.degraded) is DegradationLevel.popular
    assert len(ctx.degraded) == 4


async def test_without_time_every_stage_is_skipped_and_popular_items_remain(path: Path) -> None:
    clock = FakeClock()
    ctx, slate = await path.ask(context(clock=clock, ms=0.5), query="water")
    assert len(slate.item_ids) == 10
    assert {str(r) for r in ctx.degraded} == {
        "features_skipped", "query_not_understood", "retrieve_skipped", "rank_skipped",
    }  # fmt: skip
    assert path.fetcher.trouble.calls == path.retriever.trouble.calls == path.ranker.trouble.calls == 0


@pytest.mark.parametrize("error", [ContractViolation("bug"), InvalidRequest("no")])
async def test_bugs_and_bad_requests_are_not_hidden_behind_a_fallback(path: Path, error) -> None:
    path.retriever.trouble.error = error
    with pytest.raises(type(error)):
        await path.ask()


async def test_the_last_known_profile_is_used_while_the_store_is_away(path: Path) -> None:
    await path.ask()
    path.fetcher.trouble.error = DependencyError("away")
    ctx, slate = await path.ask(k=40)
    assert slate.user.stale and slate.user.item_ids == ("i01", "i02")
    assert DegradedReason.features_unavailable in ctx.degraded
    assert not {"i01", "i02"} & set(slate.item_ids)
    _, stranger = await path.ask(user_id="u2")
    assert stranger.user.stale and not stranger.user.known


async def test_a_stale_profile_is_never_another_user_s_session_s_or_tenant_s(path: Path) -> None:
    await path.ask(session_id="s1")
    path.fetcher.trouble.error = DependencyError("away")
    for wish in ({"user_id": "u1"}, {"user_id": None, "session_id": "s1"}, {"user_id": "u2", "session_id": "s1"}):
        assert not (await path.ask(**wish))[1].user.known
    other = context()
    other.tenant = "other"
    assert not (await path.ask(other, session_id="s1"))[1].user.known


async def test_stale_profiles_are_bounded_and_the_oldest_goes_first(tiny) -> None:
    path = Path(tiny.bundle, settings=PipelineSettings(stale_profiles=2))
    path.fetcher.users |= {f"v{n}": profile("i09") for n in range(3)}
    for user in ("v0", "v1", "v2"):
        await path.ask(user_id=user)
    path.fetcher.trouble.error = DependencyError("away")
    known = [(await path.ask(user_id=f"v{n}"))[1].user.known for n in range(3)]
    assert known == [False, True, True]


async def test_without_profiling_nothing_personal_is_read_or_used(path: Path) -> None:
    ctx, slate = await path.ask(profiling=False, k=40)
    assert path.fetcher.trouble.calls == 0 and not slate.query.personal
    assert not slate.user.known and {"i01", "i02"} <= set(slate.item_ids)
    assert DegradedReason.features_unavailable not in ctx.degraded


async def test_without_user_and_session_the_store_is_not_asked(path: Path) -> None:
    _, slate = await path.ask(user_id=None)
    assert path.fetcher.trouble.calls == 0 and len(slate.item_ids) == 10


async def test_a_given_list_is_ranked_whole_even_where_it_was_seen(path: Path) -> None:
    ctx, slate = await path.ask(candidates=["i01", "i09", "i01", "nowhere", "i05"], k=3)
    assert sorted(slate.item_ids) == ["i01", "i05", "i09"] and ctx.degraded == []
    assert all(int(bits) & Source.given for bits in slate.chosen.sources)


async def test_a_given_list_of_strangers_gives_an_empty_answer_that_says_so(path: Path) -> None:
    ctx, slate = await path.ask(candidates=["nowhere", "neither"])
    assert slate.item_ids == [] and ctx.degraded == [DegradedReason.fewer_items]


async def test_pages_never_repeat_an_item_and_reach_the_end(path: Path) -> None:
    shown, pages = np.empty(0, np.uint64), []
    for _ in range(10):
        _, slate = await path.ask(k=9, shown=shown)
        pages.append(slate.item_ids)
        if not slate.item_ids:
            break
        shown = np.concatenate([shown, hash64_array(slate.item_ids)])
    everything = [i for page in pages for i in page]
    assert len(everything) == len(set(everything)) == 38
    assert pages[-1] == []


async def test_a_seen_item_never_returns_even_if_a_retriever_forgets(tiny) -> None:
    class Forgetful(FakeRetriever):
        async def retrieve(self, call, query):
            from dataclasses import replace

            return await super().retrieve(call, replace(query, exclude_seen=False, exclude_items=(), filters={}))

    path = Path(tiny.bundle, retriever=Forgetful(lambda *_: tiny.bundle))
    wish = {"k": 40, "exclude_items": ["i05"], "filters": {"year": {"gte": 1970}}}
    _, slate = await path.ask(**wish)
    assert slate.item_ids and not {"i01", "i02", "i05"} & set(slate.item_ids)
    assert all(tiny.bundle.catalog.numbers(int(r))["year"] >= 1970 for r in slate.chosen.rows)
    assert set(slate.dropped) == {"excluded", "seen", "attributes"}


async def test_k_larger_than_the_catalog_gives_what_there_is(path: Path) -> None:
    ctx, slate = await path.ask(k=100)
    assert len(slate.item_ids) == 38 and ctx.degraded == [DegradedReason.fewer_items]


async def test_every_candidate_filtered_out_is_an_empty_answer(path: Path) -> None:
    ctx, slate = await path.ask(filters={"genre": {"any_of": ["Opera"]}})
    assert slate.item_ids == [] and ctx.degraded == [DegradedReason.fewer_items]
    assert path.ranker.trouble.calls == 0


async def test_an_unknown_attribute_matches_nothing_and_excludes_nothing(path: Path) -> None:
    assert (await path.ask(filters={"nope": {"gte": 1}}))[1].item_ids == []
    assert len((await path.ask(filters={"nope": {"none_of": ["x"]}}))[1].item_ids) == 10


async def test_an_empty_catalog_gives_an_empty_answer(tiny, tmp_path) -> None:
    from dataclasses import replace

    write_catalog([], tmp_path / "catalog.arrow")
    bundle = replace(tiny.bundle, catalog=ItemCatalog(tmp_path), embeddings=np.empty((0, 32), np.float32))
    path = Path(bundle)
    ctx, slate = await path.ask(diversity=0.5)
    assert slate.item_ids == [] and DegradedReason.empty_catalog in ctx.degraded
    assert path.retriever.trouble.calls == 0


async def test_a_ranker_with_the_wrong_number_of_scores_is_a_bug_that_shows(tiny) -> None:
    path = Path(tiny.bundle, ranker=FakeRanker(lambda _, c: c.scores[:-1]))
    with pytest.raises(ContractViolation):
        await path.ask()


async def test_scores_that_are_no_numbers_sink_and_never_reach_the_answer(tiny) -> None:
    def some(_, candidates):
        scores = -candidates.scores
        scores[:5] = np.nan
        scores[5] = np.inf
        return scores

    _, slate = await Path(tiny.bundle, ranker=FakeRanker(some)).ask(k=38)
    assert np.isfinite(slate.scores).all() and len(slate.item_ids) == 38
    _, all_nan = await Path(tiny.bundle, ranker=FakeRanker(lambda _, c: c.scores * np.nan)).ask(k=5)
    assert all_nan.item_ids == sorted(all_nan.item_ids) and len(all_nan.item_ids) == 5


async def test_candidates_of_an_incomplete_index_are_served_and_the_answer_says_so(tiny) -> None:
    class Incomplete(FakeRetriever):
        async def retrieve(self, call, query):
            return replace(await super().retrieve(call, query), incomplete=True)

    ctx, slate = await Path(tiny.bundle, retriever=Incomplete(tiny.bundle_of)).ask(k=5)
    assert len(slate.item_ids) == 5 and slate.candidates.incomplete
    assert ctx.degraded == [DegradedReason.index_incomplete]
    assert level_of(ctx.degraded) is DegradationLevel.fewer_candidates


async def test_a_cascade_that_ended_early_is_told(tiny) -> None:
    ctx, slate = await Path(tiny.bundle, ranker=FakeRanker(shortened=True)).ask(k=5)
    assert len(slate.item_ids) == 5
    assert ctx.degraded == [DegradedReason.fewer_rankers]
    assert level_of(ctx.degraded) == DegradationLevel.fewer_candidates


async def test_a_planned_rung_is_taken_before_work_begins(path: Path) -> None:
    ctx, _ = await path.ask(context(planned=DegradationLevel.fewer_candidates))
    assert ctx.degraded == [DegradedReason.fewer_candidates] and path.retriever.queries[-1].n == 50
    ctx, slate = await path.ask(context(planned=DegradationLevel.no_ranker))
    assert DegradedReason.rank_skipped in ctx.degraded and path.ranker.trouble.calls == 1
    assert slate.score_kind == "rank_only"


async def test_tunables_change_from_the_next_request_on(path: Path) -> None:
    await path.ask()
    assert path.retriever.queries[-1].n == 100
    path.pipeline.tune(PipelineSettings(candidates=200))
    await path.ask()
    assert path.retriever.queries[-1].n == 200


async def test_unknown_items_in_any_list_change_nothing(path: Path) -> None:
    _, plain = await path.ask()
    _, odd = await path.ask(seed_items=["nowhere"], exclude_items=["neither"])
    assert odd.item_ids == plain.item_ids


async def test_the_real_retriever_in_process_follows_a_user_and_a_query(tiny) -> None:
    with ThreadPoolExecutor(1) as pool:
        _ = tiny.bundle.engine  # built before the clock runs, as a replica does
        path = Path(tiny.bundle, retriever=EngineRetriever(lambda *_: tiny.bundle, pool))
        ctx, slate = await path.ask(query="a tale of water", k=8, diversity=0.4)
        assert len(slate.item_ids) == 8 and ctx.degraded == []
        assert np.asarray(slate.query.intent).shape == (32,)


async def test_a_caller_who_leaves_stops_the_stage_under_way(path: Path) -> None:
    path.ranker.trouble.hangs = True
    task = asyncio.create_task(path.ask())
    await asyncio.sleep(0.02)
    assert path.ranker.trouble.calls == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
