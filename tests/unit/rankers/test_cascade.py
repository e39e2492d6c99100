"""The cascade in the ranker stage: real rankers, a real loop; the second one only where time allows, and it is told."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from models.rankers.cascade import best_of, blended
from models.rankers.port import RetrievalOrder
from models.rankers.settings import CascadeSettings, RankerSettings
from models.rankers.text import TextRanker
from serve.context import StageCall
from serve.ranking import ModelRanker

PATIENT = StageCall("main", "r", 30_000.0)


@pytest.fixture
def text(folder, catalog):
    return TextRanker.load(folder, catalog, device="cpu", engine="packed", cached_profiles=0)


@pytest.fixture
def stage_of(catalog, text):
    pools = []

    def make(second=text, **cascade):
        settings = RankerSettings(cascade=CascadeSettings(**{"candidates": 8, "weight": 1.0, **cascade}))
        behind = None if second is None else SimpleNamespace(ranker=second)
        bundle = SimpleNamespace(catalog=catalog, ranker=RetrievalOrder(), second=behind, ranking=settings)
        pools.append(ThreadPoolExecutor(1))
        return ModelRanker(lambda tenant, release: bundle, pools[-1])

    yield make
    for pool in pools:
        pool.shutdown()


async def test_the_second_ranker_orders_the_best_of_the_first(stage_of, text, make_query, make_candidates):
    candidates = make_candidates(range(40))
    found = await stage_of().score(PATIENT, make_query(), candidates)
    best = best_of(candidates.scores, 8)
    wanted = blended(candidates.scores, best, text.score(make_query(), candidates.take(best)), weight=1.0)
    assert np.array_equal(found.values, wanted)
    assert not np.array_equal(found.values, candidates.scores)
    assert np.array_equal(found.values[8:], candidates.scores[8:])
    assert (found.kind, found.shortened) == ("rank_only", False)


async def test_a_release_without_a_second_ranker_is_not_shortened(stage_of, make_query, make_candidates):
    candidates = make_candidates(range(10))
    found = await stage_of(second=None).score(PATIENT, make_query(), candidates)
    assert np.array_equal(found.values, candidates.scores)
    assert not found.shortened


async def test_without_time_the_first_ranker_answers_and_says_so(stage_of, make_query, make_candidates):
    stage = stage_of(minimum_ms=500.0)
    candidates = make_candidates(range(10))
    found = await stage.score(StageCall("main", "r", 400.0), make_query(), candidates)
    assert np.array_equal(found.values, candidates.scores)
    assert found.shortened
    assert not (await stage.score(PATIENT, make_query(), candidates)).shortened


async def test_users_with_more_events_than_asked_for_are_ranked_once(stage_of, make_query, make_candidates):
    stage = stage_of(most_events=2)
    candidates = make_candidates(range(10))
    many = await stage.score(PATIENT, make_query(("i1", "i5", "i9")), candidates)
    few = await stage.score(PATIENT, make_query(("i1", "i5")), candidates)
    assert np.array_equal(many.values, candidates.scores) and not many.shortened
    assert not np.array_equal(few.values, candidates.scores)


class Held:
    """The text ranker's engine behind a gate."""

    def __init__(self, engine):
        self.name, self.length_multiple, self._engine, self.gate = "held", 1, engine, threading.Event()

    def logits(self, *batch):
        assert self.gate.wait(30)
        return self._engine.logits(*batch)


async def test_a_second_ranker_that_is_late_costs_no_answer_and_is_not_asked_while_it_is(
    stage_of, text, make_query, make_candidates
):
    text.engine = Held(text.engine)
    stage = stage_of(minimum_ms=1.0, reserve_ms=100.0)
    candidates = make_candidates(range(10))
    found = await asyncio.wait_for(stage.score(StageCall("main", "r", 400.0), make_query(), candidates), 5)
    text.engine.gate.set()
    assert found.shortened
    assert np.array_equal(found.values, candidates.scores)
    # It took 300 ms and more, so 250 ms are known to be too few; with time the list is ranked in full again.
    assert (await stage.score(StageCall("main", "r", 250.0), make_query(), candidates)).shortened
    assert stage.batcher.dropped["expired"] + stage.batcher.dropped["cancelled"] <= 1
    assert not (await stage.score(PATIENT, make_query(), candidates)).shortened


async def test_one_slow_moment_does_not_last_for_ever(stage_of, text, make_query, make_candidates):
    text.engine = Held(text.engine)
    stage = stage_of(minimum_ms=1.0, reserve_ms=0.0)
    candidates = make_candidates(range(10))
    await stage.score(StageCall("main", "r", 400.0), make_query(), candidates)
    text.engine.gate.set()
    short = [(await stage.score(StageCall("main", "r", 250.0), make_query(), candidates)).shortened for _ in range(20)]
    assert short[0] and not short[-1]


async def test_a_second_ranker_that_fails_costs_only_its_part(stage_of, make_query, make_candidates):
    class Broken:
        score_kind = "rank_only"

        def score(self, query, candidates):
            raise FloatingPointError("u-Zebra77")

    candidates = make_candidates(range(10))
    found = await stage_of(second=Broken()).score(PATIENT, make_query(), candidates)
    assert found.shortened
    assert np.array_equal(found.values, candidates.scores)


async def test_items_that_this_replica_does_not_know_stay_without_a_score(stage_of, make_query, make_candidates):
    candidates = make_candidates([3, 10_000, 5])
    found = await stage_of().score(PATIENT, make_query(), candidates)
    assert np.isnan(found.values[1])
    assert np.isfinite(found.values[[0, 2]]).all()
