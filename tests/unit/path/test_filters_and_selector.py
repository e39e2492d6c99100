"""What may be shown, and in which order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.candidates import SCORED_SOURCES, Candidates
from models.ids import hash64_array
from models.retrieval.query import AttributeFilter, RetrievalQuery
from serve.filters import AttributesFilter, HashFilter, apply_filters
from serve.popular import popular_candidates
from serve.selector import capped, diversify, order


def candidates_of(rows) -> Candidates:
    rows = np.asarray(rows, np.int32)
    n = len(rows)
    return Candidates(
        rows, np.ones(n, np.uint16), np.zeros((n, len(SCORED_SOURCES)), np.float32), np.arange(n, 0, -1, np.float32)
    )


def test_filters_drop_what_is_banned_keep_the_order_and_count_who_dropped_what(tiny) -> None:
    catalog = tiny.bundle.catalog
    found = candidates_of([5, 3, 8, 1, 9])
    left, dropped = apply_filters(
        found,
        [
            HashFilter("excluded", catalog, hash64_array(["i03"])),
            HashFilter("shown", catalog, hash64_array(["i03", "i09", "elsewhere"])),
            HashFilter("seen", catalog, np.empty(0, np.uint64)),
        ],
    )
    assert left.rows.tolist() == [5, 8, 1]
    assert dropped == {"excluded": 1, "shown": 1}


def test_filters_stop_when_nothing_is_left(tiny) -> None:
    class Explodes:
        name = "explodes"

        def keep(self, candidates):
            raise AssertionError("asked about nothing")

    ban = HashFilter("excluded", tiny.bundle.catalog, hash64_array(["i01"]))
    left, dropped = apply_filters(candidates_of([1]), [ban, Explodes()])
    assert len(left) == 0 and dropped == {"excluded": 1}


def test_attribute_conditions_are_proven_once_more(tiny) -> None:
    query = RetrievalQuery(
        n=5, now_ms=0, filters={"genre": AttributeFilter(any_of=("comedy",)), "year": AttributeFilter(gte=1960.0)}
    )
    left, dropped = apply_filters(candidates_of(range(40)), [AttributesFilter(tiny.bundle.masks, query)])
    assert len(left) and dropped == {"attributes": 40 - len(left)}
    for row in left.rows:
        assert "Comedy" in tiny.bundle.catalog.labels(int(row))["genre"]
        assert tiny.bundle.catalog.numbers(int(row))["year"] >= 1960


def test_equal_scores_are_ordered_by_id() -> None:
    scores = np.array([1, 2, 1, 2], np.float32)
    assert order(scores, ["d", "c", "b", "a"]).tolist() == [3, 1, 2, 0]


def test_scores_that_are_no_numbers_sink() -> None:
    scores = np.array([np.nan, -5, np.inf, -np.inf, 0], np.float32)
    assert order(scores, list("abcde")).tolist() == [4, 1, 0, 2, 3]


@given(st.lists(st.floats(width=32), max_size=40), st.randoms())
@settings(max_examples=60, deadline=None)
def test_the_order_is_a_permutation_that_does_not_depend_on_the_order_given(values, random) -> None:
    ids = [f"i{n:03}" for n in range(len(values))]
    scores = np.array(values, np.float32)
    ranked = order(scores, ids)
    assert sorted(ranked.tolist()) == list(range(len(values)))
    shuffled = list(range(len(values)))
    random.shuffle(shuffled)
    again = order(scores[shuffled], [ids[i] for i in shuffled])
    assert [ids[shuffled[i]] for i in again] == [ids[i] for i in ranked]


def _clustered(seed: int):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 16))
    vectors = (centres[np.arange(60) % 4] + 0.1 * rng.normal(size=(60, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    # One cluster holds the best scores, so that relevance alone picks near-twins.
    scores = (rng.random(60) + 2.0 * (np.arange(60) % 4 == 0)).astype(np.float32)
    return scores, vectors


def _mean_distance(vectors) -> float:
    closeness = vectors @ vectors.T
    return float(1 - closeness[np.triu_indices(len(vectors), 1)].mean())


@pytest.mark.parametrize("seed", range(5))
def test_diversity_keeps_the_best_first_and_spreads_the_rest(seed: int) -> None:
    scores, vectors = _clustered(seed)
    ranked = order(scores, [f"i{n:02}" for n in range(60)])
    lists = {d: diversify(ranked, scores, vectors, 10, diversity=d) for d in (0.0, 0.3, 0.7, 1.0)}
    assert lists[0.0].tolist() == ranked[:10].tolist()
    assert {picked[0] for picked in lists.values()} == {ranked[0]}
    assert all(len(set(picked.tolist())) == 10 for picked in lists.values())
    assert _mean_distance(vectors[lists[0.7]]) > _mean_distance(vectors[lists[0.0]])
    assert _mean_distance(vectors[lists[1.0]]) >= _mean_distance(vectors[lists[0.3]])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_diversity_with_few_or_strange_candidates_gives_what_there_is(count: int) -> None:
    scores = np.full(count, np.nan, np.float32)
    vectors = np.zeros((count, 4), np.float32)
    picked = diversify(order(scores, list("abc"[:count])), scores, vectors, 10, diversity=0.5)
    assert sorted(picked.tolist()) == list(range(count))


def test_the_popular_fallback_obeys_every_condition_of_the_query(tiny) -> None:
    catalog, user = tiny.bundle.catalog, _user(["i07", "i11"])
    query = RetrievalQuery(
        n=20,
        now_ms=0,
        user=user,
        exclude_items=("i01", "unknown"),
        filters={"genre": AttributeFilter(any_of=("Drama", "Western"))},
    )
    found = popular_candidates(tiny.bundle, query)
    ids = catalog.item_ids(found.rows)
    assert ids and not {"i01", "i07", "i11"} & set(ids)
    assert all({"Drama", "Western"} & set(catalog.labels(int(r))["genre"]) for r in found.rows)
    popularity = tiny.bundle.popularity[found.rows]
    assert (np.diff(popularity) <= 0).all()


def test_the_popular_fallback_ranks_a_given_list_and_nothing_else(tiny) -> None:
    query = RetrievalQuery(n=9, now_ms=0, only_items=("i03", "nowhere", "i05"))
    assert sorted(tiny.bundle.catalog.item_ids(popular_candidates(tiny.bundle, query).rows)) == ["i03", "i05"]


def _user(ids):
    from models.features import features_from_events

    n = len(ids)
    return features_from_events(
        list(ids), np.full(n, 2, np.uint8), np.ones(n, np.float32), np.arange(n, dtype=np.int64)
    )


def test_a_cap_passes_over_what_a_value_has_enough_of_and_keeps_the_order() -> None:
    labels = [{"brand": (b,)} for b in "aaabbc"] + [{}]
    found = capped(np.arange(7), labels, 5, caps={"brand": 2})
    assert found.tolist() == [0, 1, 3, 4, 5]
    assert capped(np.arange(7), labels, 5, caps={"brand": 1}).tolist() == [0, 3, 5, 6, 1]
    assert capped(np.arange(7), labels, 5, caps={"colour": 1}).tolist() == [0, 1, 2, 3, 4]


def test_caps_of_several_attributes_hold_together_and_never_empty_a_list() -> None:
    labels = [{"brand": ("a",), "genre": ("x", "y")}, {"brand": ("b",), "genre": ("y",)}, {"brand": ("a",)}]
    assert capped(np.arange(3), labels, 1, caps={"brand": 1, "genre": 1}).tolist() == [0]
    assert capped(np.arange(3), labels, 3, caps={"brand": 1, "genre": 1}).tolist() == [0, 1, 2]
    assert capped(np.array([2, 1, 0]), labels[::-1], 2, caps={"brand": 1, "genre": 1}).tolist() == [2, 1]
