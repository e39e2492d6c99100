"""Next baskets: what the regression learns, what tuning may see, and that the shop's yardsticks work."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.evaluate import COLD, FUSED, MERGED, NEW, REPEAT, named
from loadtests.bench import quality
from loadtests.bench.harness import BenchContext
from models.behaviour.behaviour import Behaviour, BehaviourSettings, behaviour_of, fit_behaviour
from models.behaviour.ease import fit_ease
from models.behaviour.interactions import interactions_of
from models.behaviour.next_basket import fit_next_basket
from models.behaviour.statistics import fit_statistics
from models.candidates import SCORED_SOURCES, Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.features import UserFeatures
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights
from pipelines.evaluation.ablation import uniform
from pipelines.evaluation.baselines import SHOP_BASELINES, Recommend, once, shop_baselines
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.protocol import moment_of, split_by_time
from pipelines.evaluation.tune_baskets import STRETCHES, split_of, tune_baskets

QUESTIONS = (NEW, REPEAT, COLD)
DAY_MS = 86_400_000
ITEMS = 30


def make_log(*rows: tuple[str, str, int]) -> EventLog:
    """Purchases from (user, item, day)."""
    user, item, days = zip(*rows, strict=True)
    return EventLog(
        np.array(user, object), np.array(item, object), np.full(len(rows), EventType.purchase, np.uint8),
        np.ones(len(rows), np.float32), np.array(days, np.int64) * DAY_MS,
    ).sorted_by_time()  # fmt: skip


def shop(users: int = 40, visits: int = 10) -> EventLog:
    """Everyone buys their staple at every visit, and then the follower of what they tried the visit before."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        staple, tried = int(rng.integers(5)), int(rng.integers(5, ITEMS))
        for visit in range(visits):
            day = 10 * visit + user % 10
            rows += [(f"u{user}", f"i{staple}", day), (f"u{user}", f"i{tried}", day)]
            tried = 5 + (tried - 4) % (ITEMS - 5)
    return make_log(*rows)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    folder: Path = tmp_path_factory.mktemp("catalog")
    write_catalog([Item(f"i{n:d}", f"Item {n}") for n in range(ITEMS)], folder / "catalog.arrow")
    return ItemCatalog(folder)


def engine_of(catalog: ItemCatalog) -> Callable[[EventLog], RetrievalEngine]:
    def build(train: EventLog) -> RetrievalEngine:
        vectors = np.eye(ITEMS, dtype=np.float32)
        behaviour = fit_behaviour(train, catalog, BehaviourSettings(collaborative="next_basket", basket_ridge=0.1))
        settings = RetrievalSettings(repeat_trend_power=0.5, trending_power=1.0)
        return RetrievalEngine(
            catalog, vectors, FlatIndex(vectors), behaviour, fit_statistics(train, catalog), settings
        )

    return build


def test_the_regression_learns_what_comes_next_and_what_comes_again(catalog: ItemCatalog) -> None:
    model = fit_next_basket(interactions_of(shop(), catalog), ridge=0.1)
    staple, tried, follower = catalog.rows(["i0", "i10", "i11"])
    scores = model.fold_in(np.array([staple, tried], np.int32), np.ones(2, np.float32)).of(np.arange(ITEMS))
    assert set(np.argsort(-scores)[:2]) == {staple, follower}
    assert scores[tried] < scores[follower] / 2


def test_a_regression_on_discoveries_learns_what_is_tried_next_and_not_what_comes_again(catalog: ItemCatalog) -> None:
    data = interactions_of(shop(), catalog)
    staple, tried, follower = catalog.rows(["i0", "i10", "i11"])
    history = np.array([staple, tried], np.int32), np.ones(2, np.float32)
    every, new = (
        fit_next_basket(data, ridge=0.1, discoveries=d).fold_in(*history).of(np.arange(ITEMS)) for d in (False, True)
    )
    assert np.argmax(every) == staple and np.argmax(new) == follower
    assert new[staple] < 0.1 * new[follower]


def test_answers_without_what_the_user_has_go_by_discoveries(catalog: ItemCatalog, tmp_path: Path) -> None:
    log, vectors = shop(), np.eye(ITEMS, dtype=np.float32)
    settings = BehaviourSettings(collaborative="next_basket", discoveries=True, basket_ridge=0.1, discovery_ridge=0.1)
    fit_behaviour(log, catalog, settings).save(tmp_path)
    behaviour = Behaviour.load(tmp_path)
    assert behaviour.discovery is not behaviour.collaborative
    alone = SourceWeights(**{str(s.name): float(s is Source.collaborative) for s in SCORED_SOURCES})
    engine = RetrievalEngine(
        catalog, vectors, FlatIndex(vectors), behaviour, fit_statistics(log, catalog),
        RetrievalSettings(weights=alone, short_weights=alone),
    )  # fmt: skip
    user = UserFeatures(
        ("i0", "i10"), np.full(2, EventType.purchase, np.uint8), np.ones(2, np.float32),
        np.full(2, 100 * DAY_MS), np.empty(0, np.uint64), known=True,
    )  # fmt: skip
    first = []
    for exclude in (False, True):
        query = RetrievalQuery(n=1, now_ms=101 * DAY_MS, user=user, exclude_seen=exclude)
        first += catalog.item_ids(engine.retrieve(query).rows)
    assert first == ["i0", "i11"]


def test_discoveries_blended_with_ease_are_the_sum_of_both_each_to_unit_variance(
    catalog: ItemCatalog, tmp_path: Path
) -> None:
    data = interactions_of(shop(), catalog)
    rows, weights = catalog.rows(["i0", "i10", "i0"]), np.array([0.5, 1.0, 0.25], np.float32)
    alone = BehaviourSettings(discoveries=True, discovery_ridge=0.1, ease_ridge=5.0, ease_half_life_days=60.0)
    blended = alone.model_copy(update={"discovery_share": 0.5})
    behaviour_of(data, blended).save(tmp_path)
    found = Behaviour.load(tmp_path)
    lately = behaviour_of(data, alone).discovery.fold_in(rows, weights).of(np.arange(ITEMS))
    ease = fit_ease(data, ridge=5.0, half_life_days=60.0)
    steady = ease.fold_in(rows[:2], np.ones(2, np.float32)).of(np.arange(ITEMS))
    wanted = steady / steady.std() + 0.5 * lately / lately.std()
    opinion = found.discovery.fold_in(rows, weights)
    np.testing.assert_allclose(opinion.of(np.arange(ITEMS)), wanted, rtol=1e-4, atol=1e-5)
    assert opinion.top(1, np.ones(ITEMS, bool)).tolist() == [int(np.argmax(wanted))]
    nobody = found.discovery.fold_in(np.empty(0, np.int32), np.empty(0, np.float32))
    assert nobody.spread == 0.0 and not nobody.of(np.arange(ITEMS)).any()


def test_late_baskets_count_more(catalog: ItemCatalog) -> None:
    early = [(f"e{n}", item, day) for n in range(5) for item, day in (("i0", 0), ("i1", 1))]
    late = [(f"l{n}", item, day) for n in range(5) for item, day in (("i0", 99), ("i2", 100))]
    data = interactions_of(make_log(*early, *late), catalog)
    a, b, c = catalog.rows(["i0", "i1", "i2"])

    def follows(half_life_days: float | None) -> np.ndarray:
        model = fit_next_basket(data, half_life_days=half_life_days, ridge=0.1)
        return model.fold_in(np.array([a], np.int32), np.ones(1, np.float32)).of(np.array([b, c]))

    before, after = follows(None)
    assert before == pytest.approx(after) and before > 0
    before, after = follows(10.0)
    assert after > 100 * before > 0


def test_a_log_without_a_second_basket_teaches_nothing(catalog: ItemCatalog) -> None:
    for log in (EventLog.empty(), make_log(("u", "i1", 0), ("u", "i2", 0), ("v", "i1", 3))):
        model = fit_next_basket(interactions_of(log, catalog))
        assert not model.fold_in(np.array([1], np.int32), np.ones(1, np.float32)).of(np.arange(ITEMS)).any()


def test_yardsticks_of_a_shop_rank_as_they_deserve_and_share_their_fits(catalog: ItemCatalog) -> None:
    split = split_by_time(shop(), share=0.8, repeats=True)
    methods = shop_baselines(catalog)
    assert tuple(methods) == SHOP_BASELINES
    report = evaluate(lambda seed: split, catalog, methods, seeds=(0,), k=2)
    assert report.advantage("decayed EASE + own", "popularity").low > 0
    made = []
    remembering = once(lambda given: made.append(given) or len(made))
    one, other = object(), object()
    assert [remembering(g) for g in (one, one, other, one)] == [1, 1, 2, 3]


def test_tuning_for_baskets_reads_no_test_event_and_never_ends_below_its_start(catalog: ItemCatalog) -> None:
    log = shop()
    items = log.item_ids.copy()
    held = log.timestamps_ms >= moment_of(log, 0.9)
    items[held] = "i29"
    poisoned = EventLog(log.user_ids, items, log.types, log.values, log.timestamps_ms)
    start = {Source.collaborative: 1.0, Source.popular: 2.0}
    found = [tune_baskets(each, engine_of(catalog), start, sweeps=1, grid=(0.0, 1.0)) for each in (log, poisoned)]
    assert held.any() and found[0] == found[1]
    assert found[0].ndcg > found[0].ndcg_before > 0


def test_with_a_yardstick_the_worst_stretch_is_what_counts(catalog: ItemCatalog) -> None:
    log, start = shop(), {Source.collaborative: 1.0, Source.popular: 2.0}
    options = {"sweeps": 1, "grid": (0.0, 1.0), "repeats": (True,)}
    weights = SourceWeights(**{str(s.name): start.get(s, 0.0) for s in SCORED_SOURCES})

    def itself(train: EventLog) -> Callable[[RetrievalQuery, int], list[str]]:
        engine = engine_of(catalog)(train)
        engine = engine.reweighted(uniform(engine.settings, weights))
        return lambda query, k: catalog.item_ids(engine.retrieve(query).rows)

    def nothing(train: EventLog) -> Callable[[RetrievalQuery, int], list[str]]:
        return lambda query, k: []

    against_itself = tune_baskets(log, engine_of(catalog), start, yardstick=itself, **options)
    assert against_itself.ndcg_before == pytest.approx(0.0) and against_itself.ndcg > 0
    worst = tune_baskets(log, engine_of(catalog), start, yardstick=nothing, **options)
    alone = [
        tune_baskets(log, engine_of(catalog), start, stretches=(one,), yardstick=nothing, **options)
        for one in STRETCHES
    ]
    mean = tune_baskets(log, engine_of(catalog), start, **options)
    assert worst.ndcg_before == min(each.ndcg_before for each in alone) < mean.ndcg_before


def test_a_stretch_is_predicted_from_what_lies_before_it(catalog: ItemCatalog) -> None:
    log = shop()
    split = split_of(log, (0.4, 0.5), repeats=True)
    assert split.train.timestamps_ms.max() < moment_of(log, 0.41)
    assert split.cases and max(case.now_ms for case in split.cases) < moment_of(log, 0.5)
    assert named(STRETCHES[0]) == "new, 30% to 40%"


def test_poisoned_test_baskets_change_the_score_and_nothing_that_is_learned(catalog: ItemCatalog) -> None:
    log = shop()
    items = log.item_ids.copy()
    held = log.timestamps_ms >= moment_of(log, 0.9)
    items[held] = [f"i{(int(i[1:]) * 7 + 13) % ITEMS}" for i in items[held]]
    splits = [split_by_time(EventLog(log.user_ids, i, log.types, log.values, log.timestamps_ms), repeats=True)
              for i in (log.item_ids, items)]  # fmt: skip
    for column in EventLog.__slots__:
        np.testing.assert_array_equal(getattr(splits[0].train, column), getattr(splits[1].train, column))
    lists = []

    def ours(train: EventLog):
        engine = engine_of(catalog)(train)

        def recommend(query, k):
            found = engine.retrieve(query)
            lists[-1].append(found.rows.tolist())
            return catalog.item_ids(found.rows[:k])

        return recommend

    scores = []
    for split in splits:
        lists.append([])
        report = evaluate(lambda seed, s=split: s, catalog, {"ours": ours}, seeds=(0,))
        scores.append(report.methods["ours"].metrics["ndcg"].mean)
    assert lists[0] == lists[1] and len(lists[0]) > 10
    assert scores[0] != scores[1]


def test_a_shop_states_what_its_ranker_brings_where_one_is_trained(catalog: ItemCatalog, tmp_path: Path) -> None:
    split = split_by_time(shop(), repeats=True)

    def fixed(items: list[str]) -> Callable[[EventLog], Recommend]:
        return lambda _: lambda query, k: items[:k]

    methods = {name: fixed([]) for name in (*SHOP_BASELINES, MERGED)} | {FUSED: fixed([f"i{n}" for n in range(ITEMS)])}
    for name, asked in (("with", methods), ("without", {n: m for n, m in methods.items() if n != FUSED})):
        (tmp_path / name).mkdir()
        context = BenchContext("quality", tmp_path / name, {}, settings={}, tell=lambda _: None)
        quality._baskets(context, dict.fromkeys(QUESTIONS, evaluate(lambda _: split, catalog, asked, seeds=(0,))))
        stated = {one: target.aim for one, target in context.targets.items() if one.endswith("fused_vs_merged_lower")}
        assert list(stated) == (
            [f"{question}_fused_vs_merged_lower" for question in QUESTIONS] if FUSED in asked else []
        )
        assert all((aim is None) == one.startswith(COLD) for one, aim in stated.items())
        if FUSED in asked:
            (gain,) = np.load(tmp_path / name / f"{NEW}_fused_vs_merged_lower.npy").mean(keepdims=True)
            assert gain > 0
