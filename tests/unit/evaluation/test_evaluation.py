from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.candidates import Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from pipelines.evaluation.baselines import BEST_BASELINE, Recommend, baselines
from pipelines.evaluation.bootstrap import interval, paired
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.metrics import coverage, novelty, score_list
from pipelines.evaluation.protocol import leave_last, split_by_time
from pipelines.evaluation.tune import tune


def make_log(*rows: tuple[str, str, int], types: EventType = EventType.click) -> EventLog:
    user, item, times = zip(*rows, strict=True)
    return EventLog(
        np.array(user, object), np.array(item, object), np.full(len(rows), types, np.uint8),
        np.ones(len(rows), np.float32), np.array(times, np.int64),
    ).sorted_by_time()  # fmt: skip


def walks(users: int = 30, length: int = 10, items: int = 40) -> EventLog:
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        start = int(rng.integers(items))
        # Two events share each second, so that the shuffle of ties has something to do.
        rows += [(f"u{user}", f"i{(start + n) % items}", 1000 * (n // 2)) for n in range(length)]
    return make_log(*rows)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    folder: Path = tmp_path_factory.mktemp("catalog")
    write_catalog([Item(f"i{n}", f"Item {n}") for n in range(40)], folder / "catalog.arrow")
    return ItemCatalog(folder)


def test_metrics_of_a_known_list() -> None:
    hr, ndcg, mrr, recall, precision = score_list(["x", "a", "y", "b"], {"a", "b", "c"}, 4)
    ideal = 1 + 1 / np.log2(3) + 0.5
    assert (hr, mrr, recall, precision) == (1, 0.5, pytest.approx(2 / 3), 0.5)
    assert ndcg == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert not score_list([], {"a"}, 10).any()


def test_a_target_below_k_scores_nothing() -> None:
    assert not score_list(["x", "a"], {"a"}, 1).any()


def test_coverage_and_novelty_of_known_lists() -> None:
    assert coverage([["a", "b"], ["a", "c"]], 6) == 0.5
    assert novelty([["a"], ["b"]], {"a": 3, "b": 1}) == pytest.approx((-np.log2(0.75) + 2) / 2)


def test_the_interval_covers_the_mean_and_a_pair_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    users = rng.random(400)
    one, better = interval(users), interval(users + 0.01)
    assert one.low < one.mean < one.high and better.low < one.high
    assert paired(users + 0.01 + rng.normal(0, 0.01, 400), users).low > 0
    with pytest.raises(ValueError, match="same users"):
        paired(users, users[:-1])


@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_events_are_never_trained_on(seed: int) -> None:
    log = walks()
    # An impression must not shift the shuffle of ties between the log and the cases.
    shown = make_log(("u0", "i39", 500), types=EventType.impression)
    both = EventLog(*(np.concatenate([getattr(log, n), getattr(shown, n)]) for n in EventLog.__slots__))
    split = leave_last(both.sorted_by_time(), tie_seed=seed)
    trained = set(zip(split.train.user_ids, split.train.item_ids, strict=True))
    asked = {(c.user_id, *c.targets) for c in split.cases}
    assert len(split.cases) == 90 and len(split.train) == len(log) - 90
    assert not trained & asked and trained | asked == set(zip(log.user_ids, log.item_ids, strict=True))


def test_a_case_knows_the_held_out_events_before_it_and_none_after() -> None:
    log = make_log(*[("u", f"i{n}", 1000 * n) for n in range(6)])
    cases = leave_last(log).cases
    assert [c.user.item_ids[-1] for c in cases] == ["i2", "i3", "i4"]
    assert [set(c.targets) for c in cases] == [{"i3"}, {"i4"}, {"i5"}]


def test_poisoned_held_out_events_change_the_score_and_nothing_that_is_learned(catalog: ItemCatalog) -> None:
    log = make_log(*[(f"u{u}", f"i{(u + n) % 40}", 1000 * n + u) for u in range(20) for n in range(10)])
    held = np.isin(log.timestamps_ms // 1000, [7, 8, 9])
    items = log.item_ids.copy()
    items[held] = [f"i{(int(i[1:]) * 7 + 13) % 40}" for i in items[held]]
    poisoned = EventLog(log.user_ids, items, log.types, log.values, log.timestamps_ms)
    clean_split, poisoned_split = leave_last(log), leave_last(poisoned)
    for column in EventLog.__slots__:
        np.testing.assert_array_equal(getattr(clean_split.train, column), getattr(poisoned_split.train, column))
    vectors = np.eye(40, dtype=np.float32)
    answers, scores = [], []
    for split in (clean_split, poisoned_split):
        engine = merged_engine(catalog, vectors, split.train)
        # The first held-out event of each user is predicted from clean history in both.
        first = split.cases[::3]
        lists = [engine.retrieve(RetrievalQuery(n=10, now_ms=c.now_ms, user=c.user)).rows for c in first]
        answers.append(np.array(lists))
        scores.append(
            np.mean([score_list(catalog.item_ids(r), c.targets, 10) for r, c in zip(lists, first, strict=True)])
        )
    np.testing.assert_array_equal(answers[0], answers[1])
    assert scores[0] != scores[1]


def merged_engine(catalog: ItemCatalog, vectors: np.ndarray, train: EventLog) -> RetrievalEngine:
    behaviour, statistics = fit_behaviour(train, catalog), fit_statistics(train, catalog)
    return RetrievalEngine(catalog, vectors, FlatIndex(vectors), behaviour, statistics)


def test_evaluation_ranks_methods_as_they_deserve_and_repeats_exactly(catalog: ItemCatalog) -> None:
    log = walks()
    methods = baselines(catalog)
    report = evaluate(lambda seed: leave_last(log, tie_seed=seed), catalog, methods, seeds=(0, 1))
    again = evaluate(lambda seed: leave_last(log, tie_seed=seed), catalog, methods, seeds=(0, 1))
    assert report.to_dict() == again.to_dict()
    assert (report.users, report.cases) == (30, 90)
    assert report.advantage("sequential", "popularity").low > 0
    assert report.best_of(["popularity", BEST_BASELINE]) == BEST_BASELINE


def test_a_method_that_repeats_an_item_is_refused(catalog: ItemCatalog) -> None:
    def build(train: EventLog) -> Recommend:
        def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
            return ["i1", "i1"]

        return recommend

    with pytest.raises(ValueError, match="twice"):
        evaluate(lambda seed: leave_last(walks(), tie_seed=seed), catalog, {"bad": build}, seeds=(0,))


def test_the_split_by_time_asks_for_the_next_basket_of_returning_users() -> None:
    log = make_log(
        ("u", "a", 0), ("u", "b", 500), ("u", "a", 950), ("u", "c", 950), ("u", "d", 1000),
        ("new", "a", 960), ("gone", "b", 10), *(("gone", f"x{n}", 20 + n) for n in range(9)),
    )  # fmt: skip
    # Twelve of sixteen events lie before 900.
    (case,) = split_by_time(log, share=0.75).cases
    assert case.targets == {"c"} and case.user.item_ids == ("a", "b") and not case.repeats
    (again,) = split_by_time(log, share=0.75, repeats=True, limit=1).cases
    assert again.targets == {"a", "c"} and again.repeats
    assert again.user.item_ids == ("b",) and len(again.user.seen) == 2
    (cold,) = split_by_time(log, share=0.75, cold=True).cases
    assert cold.user_id == "new" and not len(cold.user)
    train = split_by_time(log, share=0.75).train
    assert len(train) == 12 and train.timestamps_ms.max() == 500


def test_tuning_reads_no_test_event_and_never_ends_below_its_start(catalog: ItemCatalog) -> None:
    log = make_log(*[(f"u{u}", f"i{(u + n) % 40}", 1000 * n + u) for u in range(20) for n in range(12)])
    items = log.item_ids.copy()
    items[log.timestamps_ms // 1000 >= 9] = "i0"
    poisoned = EventLog(log.user_ids, items, log.types, log.values, log.timestamps_ms)
    vectors = np.eye(40, dtype=np.float32)
    start = {Source.neighbours: 1.0, Source.popular: 1.0}
    found = [tune(each, lambda t: merged_engine(catalog, vectors, t), start, seeds=(0,)) for each in (log, poisoned)]
    assert found[0] == found[1]
    assert found[0].ndcg >= found[0].ndcg_before > 0
