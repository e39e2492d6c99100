"""What a user's own past says of candidates they took before."""

import dataclasses

import numpy as np
import pytest

from models.events import EventType
from models.features import features_from_events
from models.rankers import returning
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.retrieval.query import RetrievalQuery

DAY = 86_400_000
NOW = 1_700_000_000_000
TAKEN = [("i1", 40), ("i2", 40), ("i1", 30), ("i1", 20), ("i3", 20)]
"""Items and how many days ago they were taken: three visits."""


def query_of(taken, kind=EventType.purchase, **changes):
    user = features_from_events(
        [item for item, _ in taken],
        np.full(len(taken), kind, np.uint8),
        np.ones(len(taken), np.float32),
        np.array([NOW - days * DAY for _, days in taken], np.int64),
    )
    return RetrievalQuery(**{"n": 10, "now_ms": NOW, "user": user, "exclude_seen": False, **changes})


@pytest.fixture
def columns(catalog):
    def build(query, ids):
        return dict(zip(returning.NAMES, returning.own_columns(query, catalog, catalog.rows(ids)), strict=True))

    return build


def test_each_column_says_what_its_name_does(columns):
    found = columns(query_of(TAKEN), ["i3", "i1", "i2", "i4"])
    np.testing.assert_allclose(found["own_count"], np.log1p([1, 3, 1, 0]), rtol=1e-6)
    assert found["own_recency"][0] == found["own_recency"][1] > found["own_recency"][2] > found["own_recency"][3] == 0
    np.testing.assert_allclose(found["own_share"], [1 / 3, 1, 1 / 3, 0], rtol=1e-6)
    assert found["own_last"].tolist() == [1, 1, 0, 0]
    # Every ten days, and twenty have passed; of what was taken once nobody knows a gap.
    np.testing.assert_allclose(found["own_due"], [0, np.log(21 / 11), 0, 0], rtol=1e-6)


def test_events_that_do_not_exist_or_speak_against_an_item_say_nothing(columns):
    early = columns(query_of(TAKEN, now_ms=NOW - 25 * DAY), ["i1", "i3"])
    np.testing.assert_allclose(early["own_count"], np.log1p([2, 0]), rtol=1e-6)
    against = columns(query_of(TAKEN, kind=EventType.hide), ["i1", "i2"])
    unknown = columns(query_of([("gone", 3)]), ["i1", "i2"])
    for found in (against, unknown):
        assert all((column == 0).all() for column in found.values())


@pytest.mark.parametrize("changes", [{"exclude_seen": True}, {"personal": False}])
def test_an_answer_without_what_they_have_or_without_them_reads_nothing(columns, changes):
    assert all((column == 0).all() for column in columns(query_of(TAKEN, **changes), ["i1", "i2"]).values())


def test_late_events_come_to_the_same(columns):
    late = query_of([TAKEN[n] for n in (3, 0, 4, 2, 1)])
    for one, other in zip(columns(query_of(TAKEN), ["i1"]).values(), columns(late, ["i1"]).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_they_are_columns_of_the_fusion_features(catalog, embeddings, statistics, make_candidates):
    fusion, candidates = FusionFeatures(catalog, embeddings, statistics), make_candidates([1, 2])
    at = [FEATURE_NAMES.index(name) for name in returning.NAMES]
    query = query_of(TAKEN)
    own = returning.own_columns(query, catalog, candidates.rows)
    np.testing.assert_array_equal(fusion.build(query, candidates)[:, at], np.stack(own, axis=1))
    assert (fusion.build(dataclasses.replace(query, exclude_seen=True), candidates)[:, at] == 0).all()
