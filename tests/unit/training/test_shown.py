"""Where applications post impressions, what was shown and left is what a ranker learns against."""

import numpy as np

from models.behaviour.behaviour import BehaviourSettings
from models.behaviour.replay import histories
from models.events import EventLog, EventType
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.training.examples import empty_lists
from pipelines.training.fit import _sample
from pipelines.training.lists import Sources, ranking_lists
from pipelines.training.settings import TrainingSettings
from pipelines.training.shown import Shown
from pipelines.training.split import split_events
from pipelines.training.text_cases import TextCase, given, negatives

DAY_MS = 86_400_000


def log_of(*rows):
    """Rows of (user, item, type, milliseconds)."""
    users, items, types, times = zip(*rows, strict=True)
    return EventLog(
        np.array(users, object),
        np.array(items, object),
        np.array(types, np.uint8),
        np.ones(len(rows), np.float32),
        np.array(times, np.int64),
    ).sorted_by_time()


def test_what_was_shown_between_two_events_is_known_and_nothing_later_or_of_others():
    seen, click = EventType.impression, EventType.click
    log = log_of(
        ("a", "long-ago", seen, 10 * DAY_MS),
        ("a", "first", click, 20 * DAY_MS),
        ("a", "left", seen, 20 * DAY_MS + 1),
        ("b", "of-another", seen, 20 * DAY_MS + 2),
        ("a", "taken", seen, 20 * DAY_MS + 3),
        ("a", "taken", click, 20 * DAY_MS + 4),
        ("a", "later", seen, 20 * DAY_MS + 5),
        ("a", "a-day-on", click, 40 * DAY_MS),
        ("c", "never-saw-any", click, 5),
    )
    shown = Shown(log)
    mine, *_, stranger = histories(log)
    assert [shown.before(mine, at) for at in range(3)] == [[], ["left", "taken"], []]
    assert shown.before(stranger, 0) == []
    assert Shown(log.take(log.types == click)).before(mine, 1) == []


def test_examples_mark_what_was_shown_and_left_and_never_what_was_taken(make_catalog, patterned_log):
    catalog, embeddings = make_catalog(100)
    seen = np.full(len(patterned_log), EventType.impression, np.uint8)
    just_before, ones = patterned_log.timestamps_ms - 1000, np.ones(len(patterned_log), np.float32)
    users = patterned_log.user_ids
    both = [patterned_log] + [
        EventLog(users, items, seen, ones, just_before)
        for items in (patterned_log.item_ids, np.full(len(users), "i50", object))
    ]
    columns = ("user_ids", "item_ids", "types", "values", "timestamps_ms")
    log = EventLog(*(np.concatenate([getattr(one, c) for one in both]) for c in columns)).sorted_by_time()
    settings = TrainingSettings(train_positions=4, validation_positions=2, list_size=40, near_future=0)
    sources = Sources(RetrievalSettings(), BehaviourSettings())
    train, validate = ranking_lists(
        split_events(log, settings, seed=0), catalog, embeddings, settings, sources, progress=None
    )
    left = int(catalog.rows(["i50"])[0])
    for lists in (train, validate):
        expected = (lists.rows == left) & (lists.relevance == 0)
        assert expected.any()
        assert (lists.shown == expected).all()


def test_a_step_of_the_compressed_ranker_always_sees_what_was_shown_and_left():
    lists = empty_lists(40, 30)
    lists.rows[:] = np.arange(30)
    lists.target[:] = 7
    lists.shown[:, [11, 23]] = True
    lists.rows[:, 28:] = -1
    for seed in range(5):
        part = _sample(lists, 4, np.random.default_rng(seed))
        assert (np.take_along_axis(part.rows, part.target[:, None], axis=1) == 7).all()
        assert all({7, 11, 23} <= set(rows) and -1 not in rows for rows in part.rows.tolist())
        assert (part.shown.sum(axis=1) == 2).all()
    others = {row for rows in part.rows.tolist() for row in rows} - {7, 11, 23}
    assert len(others) > 10  # the rest is drawn


def test_a_text_ranker_learns_against_what_was_shown_first_and_never_against_the_rest_of_a_basket():
    query, found = RetrievalQuery(n=20, now_ms=0), given(np.arange(20, dtype=np.int32))
    case = TextCase(0, query, found, 3, 3, right=(3, 5, 40), shown=(9, 17, 3, 50))
    for seed in range(5):
        drawn = negatives(case, 60, 4, 2, np.random.default_rng(seed)).tolist()
        assert {9, 17} <= set(drawn[:2]) and len(set(drawn)) == 6
        assert not {3, 5, 40} & set(drawn)
