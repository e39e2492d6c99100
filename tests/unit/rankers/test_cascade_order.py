"""The order that two rankers make of a list."""

import numpy as np
import pytest

from models.rankers.cascade import best_of, blended

FIRST = np.array([0.1, 0.9, 0.3, 0.8, 0.7], np.float32)


def test_the_best_are_the_highest_and_never_those_without_a_score():
    assert best_of(FIRST, 3).tolist() == [1, 3, 4]
    assert best_of(np.array([np.nan, 0.2, np.inf, 0.1], np.float32), 3).tolist() == [1, 3]
    assert best_of(np.full(3, np.nan, np.float32), 2).tolist() == []


def test_with_all_the_weight_the_second_ranker_orders_the_best_and_the_rest_keeps_its_place():
    best = best_of(FIRST, 3)
    scores = blended(FIRST, best, np.array([-1.0, 5.0, 7.0], np.float32), weight=1.0)
    assert np.argsort(-scores).tolist() == [4, 3, 1, 2, 0]
    assert sorted(scores.tolist()) == sorted(FIRST.tolist())
    assert scores[[0, 2]].tolist() == FIRST[[0, 2]].tolist()


def test_without_weight_nothing_changes():
    best = best_of(FIRST, 4)
    assert np.array_equal(blended(FIRST, best, np.array([4.0, 3, 2, 9], np.float32), weight=0.0), FIRST)


def test_both_rankers_count_whatever_the_size_of_their_numbers():
    best = best_of(FIRST, 3)
    second = np.array([0.0, 1.0, 0.4], np.float32)
    small, large = (blended(FIRST, best, second * by, weight=0.5) for by in (1e-3, 1e3))
    assert np.array_equal(small, large)


@pytest.mark.parametrize("second", [[np.nan, np.nan, np.nan], [1.0, 1.0, 1.0]])
def test_a_second_ranker_without_opinion_changes_nothing(second):
    best = best_of(FIRST, 3)
    assert np.array_equal(blended(FIRST, best, np.array(second, np.float32), weight=0.7), FIRST)


def test_a_score_that_is_missing_counts_as_an_average_one():
    best = best_of(FIRST, 3)
    scores = blended(FIRST, best, np.array([np.nan, 9.0, -9.0], np.float32), weight=1.0)
    assert np.argsort(-scores)[:3].tolist() == [3, 1, 4]
