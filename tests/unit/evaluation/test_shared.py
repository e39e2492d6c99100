"""Weightings that share what no weight changes answer as if each had been computed alone."""

from dataclasses import replace

import numpy as np
import pytest

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.catalog import Item, ItemCatalog
from models.events import EventLog, EventType
from models.features import UserFeatures
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.ablation import uniform, variants
from pipelines.evaluation.bootstrap import interval
from pipelines.evaluation.shared import LastQuestion, SharedEngine

ITEMS, NOW = 40, 10**9
CATALOG = ItemCatalog.of([Item(f"i{n}", f"Film {n}", labels={"genre": (f"g{n % 3}",)}) for n in range(ITEMS)])


def engine_of(settings: RetrievalSettings) -> RetrievalEngine:
    rng = np.random.default_rng(0)
    items = rng.integers(0, ITEMS, 600)
    log = EventLog(
        np.repeat(np.array([f"u{n}" for n in range(60)], object), 10), np.array([f"i{n}" for n in items], object),
        np.full(600, EventType.click, np.uint8), np.ones(600, np.float32), np.arange(600, dtype=np.int64) * 1000,
    )  # fmt: skip
    vectors = rng.normal(size=(ITEMS, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    behaviour = fit_behaviour(log, CATALOG, BehaviourSettings(ease_ridge=5.0))
    return RetrievalEngine(CATALOG, vectors, FlatIndex(vectors), behaviour, fit_statistics(log, CATALOG), settings)


def questions() -> list[RetrievalQuery]:
    rng, asked = np.random.default_rng(1), []
    for length in (0, 1, 3, 7, 7):
        ids = tuple(f"i{n}" for n in rng.integers(0, ITEMS, length))
        user = UserFeatures(
            ids, np.full(length, EventType.click, np.uint8), np.ones(length, np.float32),
            NOW - np.arange(length, 0, -1, dtype=np.int64), np.sort(CATALOG.hashes[CATALOG.rows(ids)]), length > 0,
        )  # fmt: skip
        plain = RetrievalQuery(n=10, now_ms=NOW, user=user)
        asked += [plain, replace(plain, exclude_seen=False), replace(plain, n=3), replace(plain, seed_items=("i1",))]
        asked += [replace(plain, filters={"genre": AttributeFilter(("g1",))}), replace(plain, now_ms=NOW + 10**6)]
        asked += [replace(plain, intent=np.eye(8, dtype=np.float32)[0]), replace(plain, exclude_items=("i2",)), plain]
        asked += [replace(plain, context=(("genre", "g2"),)), replace(plain, personal=False)]
    return asked


def test_every_weighting_answers_every_question_as_an_engine_of_its_own() -> None:
    settings = RetrievalSettings()
    base, memory = engine_of(settings), LastQuestion()
    changed = {"as given": settings, "one": uniform(settings), **variants(settings, repeats=True)}
    shared = {name: SharedEngine(base, of, memory) for name, of in changed.items()}
    alone = {name: engine_of(of) for name, of in changed.items()}
    lists = set()
    for query in questions():
        for name in changed:
            mine, own = shared[name].retrieve(query), alone[name].retrieve(query)
            for column in ("rows", "sources", "source_scores", "scores"):
                np.testing.assert_array_equal(getattr(mine, column), getattr(own, column), err_msg=name)
            lists.add(tuple(mine.rows.tolist()))
    assert len(lists) > 50


def test_a_question_is_computed_once_for_all_weightings_and_again_for_another_user() -> None:
    base, memory, calls = engine_of(RetrievalSettings()), LastQuestion(), []
    for source in base._sources.values():
        inner = source.opinion
        source.opinion = lambda state, inner=inner, name=source.source: calls.append(name) or inner(state)
    engines = [SharedEngine(base, of, memory) for of in variants(RetrievalSettings(), repeats=False).values()]
    query = next(q for q in questions() if len(q.user) == 7)
    for _ in range(2):
        for engine in engines:
            engine.retrieve(query)
        query = replace(query, user=replace(query.user))
    assert len(calls) == 2 * len(set(calls)) and len(set(calls)) >= 9


def test_other_settings_than_weights_are_refused() -> None:
    settings = RetrievalSettings()
    with pytest.raises(ValueError, match="more than weights"):
        SharedEngine(engine_of(settings), settings.model_copy(update={"semantic_events": 3}), LastQuestion())


def test_an_interval_is_that_of_resampling_users_round_by_round() -> None:
    values, rng = np.random.default_rng(3).random(101), np.random.default_rng(5)
    means = [values[rng.integers(0, 101, 101)].mean() for _ in range(500)]
    found = interval(values, rounds=500, seed=5)
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), rtol=1e-12)
    assert found.mean == values.mean()
