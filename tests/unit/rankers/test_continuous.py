"""Continuous batching: a real event loop, a real thread pool and a real text ranker whose engine can be held."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from models.rankers.port import RetrievalOrder
from models.rankers.text import TextRanker, TextTask
from serve.continuous import ContinuousBatcher
from serve.errors import DeadlineExceeded, DependencyError, OverloadError

PATIENT_MS = 30_000.0


class HeldEngine:
    """The ranker's own engine behind a gate; remembers the batches it computed."""

    def __init__(self, engine) -> None:
        self.name, self.length_multiple, self._engine = engine.name, engine.length_multiple, engine
        self.begun, self._may_pass = threading.Event(), threading.Semaphore(0)
        self.batches = []

    def let(self, batches: int) -> None:
        for _ in range(batches):
            self._may_pass.release()

    def logits(self, tokens, types, mask):
        self.begun.set()
        assert self._may_pass.acquire(timeout=30)
        self.batches.append(mask.sum(axis=1))
        return self._engine.logits(tokens, types, mask)


@pytest.fixture
def release(folder, catalog):
    ranker = TextRanker.load(folder, catalog, device="cpu", engine="transformers", cached_profiles=0)
    return SimpleNamespace(ranker=ranker)


@pytest.fixture
def held(release):
    release.ranker.engine = HeldEngine(release.ranker.engine)
    return release.ranker.engine


@pytest.fixture
def batcher():
    with ThreadPoolExecutor(1) as pool:
        yield ContinuousBatcher(pool, step_tokens=256, max_waiting=4)


async def begun(engine) -> None:
    """Wait until a step has reached the engine."""
    assert await asyncio.to_thread(engine.begun.wait, 30)


async def test_requests_at_once_score_as_they_do_alone(batcher, release, make_query, make_candidates) -> None:
    asked = [(make_query((f"i{n}", "i9")), make_candidates(range(n, n + 7))) for n in range(4)]
    answers = await asyncio.gather(*(batcher.score(release, q, c, PATIENT_MS) for q, c in asked))
    for (query, candidates), (values, kind) in zip(asked, answers, strict=True):
        alone = release.ranker.score(query, candidates)
        assert alone.std() > 0.01
        assert kind == "rank_only"
        assert np.abs(values - alone).max() <= 1e-4
        assert np.array_equal(np.argsort(values), np.argsort(alone))


async def test_a_step_computes_no_more_than_its_tokens(batcher, release, held, make_query, make_candidates) -> None:
    held.let(100)
    await batcher.score(release, make_query(), make_candidates(range(40)), PATIENT_MS)
    assert len(held.batches) > 2
    assert all(batch.sum() <= 256 for batch in held.batches)
    assert sum(len(batch) for batch in held.batches) == 40


async def test_small_requests_share_a_step(batcher, release, held, make_query, make_candidates) -> None:
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([0]), PATIENT_MS))
    await begun(held)
    rest = [
        asyncio.create_task(batcher.score(release, make_query((f"i{n}",)), make_candidates([n]), PATIENT_MS))
        for n in (1, 2, 3)
    ]
    await asyncio.sleep(0)
    held.let(2)
    await asyncio.gather(first, *rest)
    assert [len(batch) for batch in held.batches] == [1, 3]


async def test_a_request_with_less_time_overtakes_one_under_way(
    batcher, release, held, make_query, make_candidates
) -> None:
    done = []

    async def ask(name, rows, ms):
        await batcher.score(release, make_query((f"i{len(rows)}",)), make_candidates(rows), ms)
        done.append((name, len(held.batches)))

    async with asyncio.TaskGroup() as group:
        group.create_task(ask("large", range(40), PATIENT_MS))
        await begun(held)
        group.create_task(ask("patient", [1], PATIENT_MS * 2))
        group.create_task(ask("urgent", [2, 3], PATIENT_MS / 2))
        await asyncio.sleep(0)
        held.let(100)
    assert [name for name, _ in done] == ["urgent", "large", "patient"]
    assert done[0][1] == 2 < done[1][1]  # the large one was under way, and finished after


async def test_a_request_whose_time_is_up_is_never_computed(
    batcher, release, held, make_query, make_candidates
) -> None:
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([0]), PATIENT_MS))
    await begun(held)
    with pytest.raises(DeadlineExceeded):
        await batcher.score(release, make_query(), make_candidates([1, 2]), 10.0)
    held.let(10)
    await first
    await batcher.score(release, make_query(), make_candidates([3]), PATIENT_MS)
    assert sum(len(batch) for batch in held.batches) == 2
    assert batcher.dropped == {"expired": 1, "cancelled": 0}


async def test_a_request_whose_caller_left_is_never_computed(
    batcher, release, held, make_query, make_candidates
) -> None:
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([0]), PATIENT_MS))
    await begun(held)
    gone = asyncio.create_task(batcher.score(release, make_query(), make_candidates([1, 2]), PATIENT_MS))
    await asyncio.sleep(0)
    gone.cancel()
    held.let(10)
    await first
    await batcher.score(release, make_query(), make_candidates([3]), PATIENT_MS)
    assert sum(len(batch) for batch in held.batches) == 2
    assert batcher.dropped == {"expired": 0, "cancelled": 1}


async def test_the_rest_of_a_request_under_way_is_dropped_when_its_caller_leaves(
    batcher, release, held, make_query, make_candidates
) -> None:
    large = asyncio.create_task(batcher.score(release, make_query(), make_candidates(range(40)), PATIENT_MS))
    await begun(held)
    large.cancel()
    held.let(10)
    await batcher.score(release, make_query(), make_candidates([3]), PATIENT_MS)
    assert sum(len(batch) for batch in held.batches) < 40
    assert batcher.dropped["cancelled"] == 1


async def test_too_many_that_wait_are_refused_and_those_given_up_do_not_count(
    batcher, release, held, make_query, make_candidates
) -> None:
    def ask(row):
        return asyncio.create_task(batcher.score(release, make_query(), make_candidates([row]), PATIENT_MS))

    first = ask(0)
    await begun(held)
    waiting = [ask(row) for row in (1, 2, 3, 4)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadError):
        await ask(5)
    waiting[1].cancel()
    await asyncio.sleep(0)
    late = ask(6)
    await asyncio.sleep(0)
    assert not late.done()
    held.let(10)
    await asyncio.gather(first, late, waiting[0], waiting[2], waiting[3])


async def test_one_request_that_cannot_be_scored_fails_alone(batcher, release, make_query, make_candidates) -> None:
    asked = [make_candidates([1]), make_candidates([10**6]), make_candidates([2])]
    found = await asyncio.gather(
        *(batcher.score(release, make_query(), c, PATIENT_MS) for c in asked), return_exceptions=True
    )
    assert isinstance(found[1], DependencyError)
    assert np.isfinite([found[0][0][0], found[2][0][0]]).all()


async def test_a_request_whose_scores_cannot_be_put_together_fails_alone(
    batcher, release, held, make_query, make_candidates, monkeypatch
) -> None:
    whole = TextTask.scores

    def scores(task):
        if len(task._keys) == 3:
            raise ValueError("features do not fit")
        return whole(task)

    monkeypatch.setattr(TextTask, "scores", scores)
    asked = [(make_query(("i1",)), make_candidates(range(n))) for n in (3, 5)]
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([1]), PATIENT_MS))
    await begun(held)
    calls = [asyncio.create_task(batcher.score(release, q, c, PATIENT_MS)) for q, c in asked]
    await asyncio.sleep(0)  # both wait now, and share the next step
    held.let(8)
    await first
    bad, good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(bad, DependencyError) and "features" not in str(bad)
    assert len(good[0]) == 5


async def test_a_step_that_fails_is_tried_request_by_request(batcher, release, make_query, make_candidates) -> None:
    real = release.ranker.engine

    class Picky:
        name, length_multiple = "picky", 1

        def logits(self, tokens, types, mask):
            if len(tokens) > 1:
                raise FloatingPointError("u-Zebra77")
            return real.logits(tokens, types, mask)

    release.ranker.engine = Picky()
    asked = [make_candidates([1]), make_candidates([2]), make_candidates([3, 4])]
    found = await asyncio.gather(
        *(batcher.score(release, make_query(), c, PATIENT_MS) for c in asked), return_exceptions=True
    )
    assert np.isfinite([found[0][0][0], found[1][0][0]]).all()
    assert isinstance(found[2], DependencyError)
    assert "Zebra" not in str(found[2])


async def test_after_a_step_that_fails_nobody_computes_for_a_caller_who_left(
    batcher, release, held, make_query, make_candidates, monkeypatch
) -> None:
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([0]), PATIENT_MS))
    await begun(held)
    calls = [
        asyncio.create_task(batcher.score(release, make_query((f"i{n}",)), make_candidates([n]), PATIENT_MS))
        for n in (1, 2)
    ]
    await asyncio.sleep(0)
    loop, advance = asyncio.get_running_loop(), release.ranker.advance

    def advanced(tasks, *, tokens):
        if len(tasks) > 1:
            loop.call_soon_threadsafe(calls[1].cancel)
            raise FloatingPointError
        advance(tasks, tokens=tokens)

    monkeypatch.setattr(release.ranker, "advance", advanced)
    held.let(10)
    await asyncio.gather(first, calls[0])
    await batcher.score(release, make_query(), make_candidates([3]), PATIENT_MS)
    assert sum(len(batch) for batch in held.batches) == 3
    assert batcher.dropped == {"expired": 0, "cancelled": 1}


async def test_releases_are_not_mixed_in_a_step(batcher, release, held, make_query, make_candidates) -> None:
    other = SimpleNamespace(ranker=RetrievalOrder())
    candidates = make_candidates(range(5))
    first = asyncio.create_task(batcher.score(release, make_query(), make_candidates([0]), PATIENT_MS))
    await begun(held)
    old = asyncio.create_task(batcher.score(release, make_query(), make_candidates([1]), PATIENT_MS))
    new = asyncio.create_task(batcher.score(other, make_query(), candidates, PATIENT_MS))
    await asyncio.sleep(0)
    held.let(10)
    await asyncio.gather(first, old, new)
    assert np.array_equal(new.result()[0], candidates.scores)
    assert np.isfinite(old.result()[0]).all()


async def test_an_executor_that_is_gone_leaves_nobody_waiting(release, make_query, make_candidates) -> None:
    pool = ThreadPoolExecutor(1)
    batcher = ContinuousBatcher(pool)
    pool.shutdown()
    with pytest.raises(DependencyError):
        await asyncio.wait_for(batcher.score(release, make_query(), make_candidates([1]), PATIENT_MS), 5)


async def test_workers_compute_different_requests_at_once(release, held, make_query, make_candidates) -> None:
    with ThreadPoolExecutor(2) as pool:
        batcher = ContinuousBatcher(pool, workers=2, step_tokens=64)
        asked = [
            asyncio.create_task(batcher.score(release, make_query((f"i{n}",)), make_candidates([n, n + 1]), PATIENT_MS))
            for n in range(3)
        ]
        await asyncio.sleep(0)
        assert batcher.waiting == 1
        held.let(100)
        await asyncio.gather(*asked)
