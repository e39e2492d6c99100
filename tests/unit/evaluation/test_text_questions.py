"""Who is asked what on later rows: lists like the past that hold what was taken, and lists as they are served."""

import numpy as np
import pytest

from cluster.text_questions import DEPTH, Asker, Question, gains
from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.candidates import SCORED_SOURCES, Candidates, Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.ablation import only

ITEMS, SINCE = 200, 1_000
NEAR, FAR = 3, 100
"""Beside item 0 on the circle, and opposite it: not among the most alike."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Items lie on a circle: the nearest by number are the most alike."""
    file = tmp_path_factory.mktemp("catalog") / "catalog.arrow"
    write_catalog([Item(str(n), f"item {n}") for n in range(ITEMS)], file)
    turn = 2 * np.pi * np.arange(ITEMS) / ITEMS
    return ItemCatalog(file), np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)


def asker(world, taken, *, seed=0):
    """Return one over `taken`, of (user, item, time); the sources know what happened before `SINCE`."""
    catalog, vectors = world
    users, items, times = zip(*taken, strict=True)
    log = EventLog(
        np.array(users, object),
        np.array([str(i) for i in items], object),
        np.full(len(taken), EventType.purchase, np.uint8),
        np.ones(len(taken), np.float32),
        np.array(times, np.int64),
    ).sorted_by_time()
    known = log.take(log.timestamps_ms < SINCE)
    behaviour, statistics = fit_behaviour(known, catalog, BehaviourSettings()), fit_statistics(known, catalog)

    def engine(settings):
        return RetrievalEngine(catalog, vectors, FlatIndex(vectors), behaviour, statistics, settings)

    settings = RetrievalSettings()
    return Asker(catalog, engine(only(settings, Source.semantic)), engine(settings), log, SINCE, seed)


def test_of_lists_like_the_past_the_first_that_holds_what_was_taken_is_asked(world):
    past = [(user, 0, 1) for user in ("a", "b", "c")]
    later = [("a", NEAR, SINCE), ("b", FAR, SINCE), ("b", FAR + 1, SINCE + 1), ("c", FAR, SINCE)]
    asked = asker(world, [*past, *later]).like_the_past(10)
    assert len(asked) == 2, "c took nothing that is like the past"
    by_past = {q.query.user.item_ids: q for q in asked}
    for known, taken in ((("0",), NEAR), (("0", str(FAR)), FAR + 1)):
        question = by_past[known]
        assert question.candidates.rows[question.place] == taken
        assert len(question.candidates) == len(question.similarity) == DEPTH
    first = by_past[("0",)]
    assert set(first.candidates.rows[np.argsort(-first.similarity)[:2]].tolist()) == {1, ITEMS - 1}


def test_as_served_everybody_is_asked_once_whether_the_list_holds_what_was_taken_or_not(world):
    past = [(user, 0, 1) for user in "abcde"] + [(user, NEAR, 2) for user in "de"]
    later = [("a", NEAR, SINCE), ("a", FAR, SINCE + 1), ("b", FAR, SINCE), ("new", NEAR, SINCE)]
    asked = asker(world, [*past, *later]).served(10)
    assert len(asked) == 2, "c, d and e took nothing later, and who is new has no past"
    assert sorted(question.place >= 0 for question in asked) == [False, True]
    (hit,) = (question for question in asked if question.place >= 0)
    assert hit.candidates.rows[hit.place] == NEAR


def test_the_past_of_a_question_is_what_was_known_then(world):
    later = [("a", NEAR, SINCE), ("a", 5, SINCE + 1)]
    (question,) = asker(world, [("a", 0, 1), *later]).served(10)
    assert question.query.user.item_ids == ("0",) and question.query.now_ms == SINCE


def test_who_is_asked_first_is_drawn_with_the_seed(world):
    taken = [(f"u{n}", n, 1) for n in range(30)] + [(f"u{n}", n + 1, SINCE) for n in range(30)]
    pasts = [[q.query.user.item_ids for q in asker(world, taken, seed=seed).served(5)] for seed in (0, 0, 1)]
    assert pasts[0] == pasts[1] != pasts[2] and len(pasts[0]) == 5


def test_a_miss_gains_nothing_and_equal_scores_share_their_places():
    rows = np.arange(4, dtype=np.int32)
    blank = np.zeros((4, len(SCORED_SOURCES)), np.float32)
    candidates = Candidates(rows, np.zeros(4, np.uint16), blank, np.zeros(4, np.float32))
    asked = [Question(RetrievalQuery(n=4, now_ms=0), candidates, place) for place in (0, 1, 1, -1)]
    scores = [np.array(s, np.float32) for s in ([4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 0, 0], [])]
    np.testing.assert_allclose(gains(asked, scores), [1.0, 1 / np.log2(3), 1 / np.log2(2.5), 0.0])
