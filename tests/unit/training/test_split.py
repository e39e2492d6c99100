import numpy as np
import pytest

from models.events import EventType
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Part, split_events, stretches

SETTINGS = TrainingSettings(train_positions=4, validation_positions=2)


def test_by_user_the_latest_events_validate_and_the_ones_before_them_train(make_log):
    log = make_log([("a", f"i{n}", n) for n in range(20)])
    split = split_events(log, SETTINGS, seed=0)
    assert split.fit.item_ids.tolist() == [f"i{n}" for n in range(14)]
    assert [e.position for e in split.of(Part.train)] == [14, 15, 16, 17]
    assert [e.position for e in split.of(Part.validate)] == [18, 19]
    assert {e.last for e in split.of(Part.train)} == {17}


def test_a_short_history_still_feeds_the_sources_with_half_of_it(make_log):
    log = make_log([("a", f"i{n}", n) for n in range(4)] + [("b", "i1", 5)])
    split = split_events(log, SETTINGS, seed=0)
    assert split.fit.item_ids.tolist() == ["i0", "i1", "i1"]
    assert [(e.position, e.part) for e in split.examples] == [(2, Part.train), (3, Part.validate)]


def test_by_time_no_example_is_older_than_an_event_the_sources_saw(make_log):
    rows = [(f"u{n % 7}", f"i{n % 11}", n) for n in range(200)]
    settings = TrainingSettings(split="time", time_share=0.3)
    split = split_events(make_log(rows), settings, seed=0)
    at = {part: times(split.of(part)) for part in Part}
    assert split.fit.timestamps_ms.max() < min(at[Part.train])
    assert max(at[Part.train]) < min(at[Part.validate])


def test_too_many_examples_are_thinned_by_whole_users_the_same_way_for_a_seed(make_log):
    log = make_log([(f"u{u}", f"i{n}", n) for u in range(30) for n in range(20)])
    settings = SETTINGS.model_copy(update={"max_lists": 60})
    one, again, other = (split_events(log, settings, seed=s) for s in (1, 1, 2))
    assert len(one.examples) == 60
    assert len({e.history.user_id for e in one.examples}) == 10
    assert [e.history.user_id for e in one.examples] == [e.history.user_id for e in again.examples]
    assert {e.history.user_id for e in one.examples} != {e.history.user_id for e in other.examples}
    assert len(one.fit) == 30 * 14  # the sources do not gain the events of users left out


def test_an_empty_log_has_no_examples(make_log):
    for kind in ("user", "time"):
        split = split_events(make_log([]), TrainingSettings(split=kind), seed=0)
        assert len(split.fit) == len(split.examples) == 0


def test_equal_times_keep_the_order_of_the_log(make_log):
    log = make_log([("a", f"i{n}", 0) for n in range(12)])
    split = split_events(log, SETTINGS, seed=0)
    taken = [e.history.item_ids[e.position] for e in split.examples]
    assert taken == [f"i{n}" for n in range(6, 12)]
    assert np.array_equal(split.fit.item_ids, np.array([f"i{n}" for n in range(6)], object))


def test_what_fits_the_sources_is_an_example_too_where_that_is_asked_and_counts_for_no_limit(make_taste_log):
    log, few = make_taste_log(20), SETTINGS.model_copy(update={"max_lists": 30})
    held, all_of_them = (split_events(log, few, seed=0, fitted=fitted) for fitted in (False, True))
    assert not held.of(Part.fit) and len(all_of_them.of(Part.fit)) > len(all_of_them.of(Part.train))
    for part in (Part.train, Part.validate):
        assert [(e.user, e.position) for e in held.of(part)] == [(e.user, e.position) for e in all_of_them.of(part)]
    assert (held.fit.timestamps_ms == all_of_them.fit.timestamps_ms).all()
    assert all(e.position > 0 for e in all_of_them.examples)


def test_a_basket_is_one_example_asked_before_it_and_cut_where_the_part_or_the_kind_of_event_changes(make_log):
    hours = [0, 0, 1, 1, 1, 2, 3, 3, 4]
    log = make_log([("a", f"i{n}", hour) for n, hour in enumerate(hours)])
    log.types[6] = EventType.hide
    settings = SETTINGS.model_copy(update={"baskets": True, "train_positions": 2, "validation_positions": 2})
    split = split_events(log, settings, seed=0, fitted=True)
    assert [(e.position, e.basket, e.part) for e in split.examples] == [
        (0, 2, Part.fit),
        (2, 3, Part.fit),
        (5, 1, Part.train),
        (7, 1, Part.validate),
        (8, 1, Part.validate),
    ]


def test_a_basket_finds_something_new_or_does_not(make_log):
    taken = [("i0", 0), ("i1", 1), ("i0", 1), ("i1", 2), ("i0", 3), ("i2", 3)]
    log = make_log([("a", item, hour) for item, hour in taken])
    baskets = SETTINGS.model_copy(update={"baskets": True})
    examples = split_events(log, baskets, seed=0, fitted=True).examples
    # The first one has no past that it could be compared with.
    found = [(e.position, e.finds_new()) for e in examples]
    assert found == [(0, False), (1, True), (3, False), (4, True)]


def test_each_stretch_of_examples_comes_with_all_events_before_it_and_none_of_its_own(make_log):
    rows = [(f"u{n % 7}", f"i{n % 11}", n) for n in range(200)]
    split = split_events(make_log(rows), TrainingSettings(split="time", time_share=0.5), seed=0)
    found = list(stretches(split, Part.train, 4))
    assert len(found) == 4
    assert sorted(times(e for _, examples in found for e in examples)) == sorted(times(split.of(Part.train)))
    for fit, examples in found:
        first = min(times(examples))
        assert fit.timestamps_ms.max() < first and len(fit) == int((split.log.timestamps_ms < first).sum())
    ((fit, examples),) = stretches(split, Part.train, 1)
    assert fit is split.fit and examples == split.of(Part.train)


def times(examples):
    return [int(e.history.timestamps_ms[e.position]) for e in examples]


def test_stretches_of_a_split_by_user_are_refused_by_name():
    with pytest.raises(ValueError, match=r"stretches = 3 needs split: time"):
        TrainingSettings(stretches=3)


def test_a_user_who_joins_moves_nobody_else_to_the_other_half(make_log):
    rows = [(f"u{n % 30}", f"i{n % 11}", n) for n in range(300)]
    before, after = (
        {e.history.user_id: e.user for e in split_events(make_log(log), TrainingSettings(), seed=0).examples}
        for log in (rows, [("a", f"i{n}", n) for n in range(9)] + rows)
    )
    assert len(before) == 30 and after.keys() - before.keys() == {"a"}
    assert all(after[user] == number for user, number in before.items())
    assert 8 <= sum(number % 2 for number in before.values()) <= 22
