import numpy as np
import pytest

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.index import FlatIndex
from models.rankers.fusion import FusionFeatures
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.training.examples import ANY, NEW, build_lists
from pipelines.training.lists import Sources, ranking_lists
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Part, split_events

SETTINGS = TrainingSettings(train_positions=4, validation_positions=2)


@pytest.fixture
def lists_of(make_catalog):
    catalog, embeddings = make_catalog(100)

    def build(log, part=Part.train, settings=SETTINGS, **options):
        split = split_events(log, settings, seed=0)
        statistics = fit_statistics(split.fit, catalog)
        engine = RetrievalEngine(
            catalog, embeddings, FlatIndex(embeddings), fit_behaviour(split.fit, catalog), statistics
        )
        fusion = FusionFeatures(catalog, embeddings, statistics)
        return build_lists(split.of(part), engine, fusion, catalog, size=20, **options)

    return build


def test_what_a_user_takes_at_or_after_an_example_changes_none_of_its_inputs(lists_of, patterned_log, make_log):
    """Poison the last training event and everything later of every user: earlier examples must not notice."""
    rows = list(
        zip(patterned_log.user_ids, patterned_log.item_ids, patterned_log.timestamps_ms // 3_600_000, strict=True)
    )
    poisoned = [(u, "i77" if hour % 24 >= 11 else i, int(hour)) for u, i, hour in rows]
    clean = lists_of(make_log([(u, i, int(h)) for u, i, h in rows]), keep_missed=True)
    other = lists_of(make_log(poisoned), keep_missed=True)
    assert len(clean) == len(other) == 120 * 4
    # positions 8..11 of 14 train: the inputs of all four are fixed by positions 0..10
    assert np.array_equal(clean.rows, other.rows)
    assert np.array_equal(clean.features, other.features)
    assert np.array_equal(clean.history, other.history)
    assert not np.array_equal(clean.target, other.target)  # the poison was real


def test_the_item_taken_is_the_target_and_lists_without_it_are_dropped(lists_of, patterned_log):
    found = lists_of(patterned_log)
    every = lists_of(patterned_log, keep_missed=True)
    assert (found.target >= 0).all()
    assert len(found) == (every.target >= 0).sum() <= len(every)
    assert np.allclose(found.relevance[np.arange(len(found)), found.target], 1.0)


def test_the_near_future_is_partly_relevant_and_never_reaches_into_validation(lists_of, patterned_log, make_log):
    rows = [
        (u, i, int(t // 3_600_000))
        for u, i, t in zip(patterned_log.user_ids, patterned_log.item_ids, patterned_log.timestamps_ms, strict=True)
    ]
    later = [(u, "i77" if hour % 24 >= 12 else i, hour) for u, i, hour in rows]  # 12 and 13 validate
    soft = lists_of(make_log(rows), near_future=3, near_future_weight=0.5)
    poisoned = lists_of(make_log(later), near_future=3, near_future_weight=0.5)
    assert (lists_of(make_log(rows)).relevance.sum(axis=1) == 1.0).all()
    assert set(np.unique(soft.relevance)) == {0.0, 0.125, 0.25, 0.5, 1.0}
    assert np.array_equal(soft.relevance, poisoned.relevance)


def test_seen_items_are_not_candidates(lists_of, patterned_log):
    lists = lists_of(patterned_log)
    for at in range(len(lists)):
        assert not set(lists.rows[at] + 1) & set(lists.history[at, 0].tolist()) - {0}


def test_all_of_a_basket_is_right_and_it_is_asked_for_before_any_of_it(lists_of, patterned_log, make_log):
    names = zip(patterned_log.user_ids, patterned_log.item_ids, patterned_log.timestamps_ms // 3_600_000, strict=True)
    # Baskets of two: the second event at the time of the first.
    log = make_log([(user, item, int(hour) - int(hour) % 2) for user, item, hour in names])
    baskets = SETTINGS.model_copy(update={"baskets": True})
    every, soft = (
        lists_of(log, settings=baskets, keep_missed=True, near_future=near, near_future_weight=0.5) for near in (0, 1)
    )
    assert len(every) == 120 * 2 and every.relevance.sum(axis=1).max() == 2.0
    assert set(np.unique(every.relevance)) == {0.0, 1.0} and 0.5 in np.unique(soft.relevance)
    hit = every.target >= 0
    assert (hit == (every.relevance.sum(axis=1) > 0)).all()
    assert np.allclose(every.relevance[hit, every.target[hit]], 1.0)
    # Asked before it: the newest event of every history is of an earlier hour.
    assert (every.history[:, 3, -1] > 0).all()


def test_where_items_come_again_what_is_new_to_the_user_is_asked_for_too(make_catalog, make_log):
    catalog, embeddings = make_catalog(30)
    # Everybody takes one of three items again every other time.
    rows = [(f"u{u}", f"i{u % 3 if n % 2 else (u + n) % 30}", n) for u in range(12) for n in range(16)]
    settings = SETTINGS.model_copy(update={"exclude_seen": False, "list_size": 30})
    split = split_events(make_log(rows), settings, seed=0)
    sources = Sources(RetrievalSettings(), BehaviourSettings())
    _, lists = ranking_lists(split, catalog, embeddings, settings, sources, progress=None)
    asked = split.of(Part.validate)
    new = [example for example in asked if example.finds_new()]
    assert 0 < len(new) < len(asked) and len(lists) == len(asked) + len(new)
    again, of_new = lists.take(np.arange(len(asked))), lists.take(np.arange(len(asked), len(lists)))
    assert of_new.user.tolist() == [example.user for example in new]
    assert not again.new.any() and of_new.new.all() and set(lists.questions()) == {NEW, ANY}

    def past(example):
        return set(catalog.rows(example.history.item_ids[: example.position].tolist()))

    assert all(not past(example) & set(of_new.rows[at]) for at, example in enumerate(new))
    assert any(past(example) & set(again.rows[at]) for at, example in enumerate(asked))
