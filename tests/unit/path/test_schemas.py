"""The contract as types: what a request may hold."""

import json

import pytest
from pydantic import ValidationError

from serve.schemas import EventIn, RecommendRequest

EVENT = {"event_id": "e1", "user_id": "u1", "item_id": "i1", "type": "click"}


def problems(schema, body) -> str:
    with pytest.raises(ValidationError) as refused:
        schema.model_validate_json(body if isinstance(body, str) else json.dumps(body))
    return str(refused.value)


def test_the_example_of_the_contract_is_accepted() -> None:
    body = {
        "user_id": "196",
        "session_id": None,
        "k": 10,
        "explain": True,
        "language": "en",
        "context": {"surface": "home"},
        "query": None,
        "seed_items": ["50"],
        "candidates": None,
        "exclude_items": [],
        "exclude_seen": True,
        "cursor": None,
        "filters": {"genres": {"any_of": ["Comedy"]}, "year": {"gte": 1990}},
        "diversity": 0.2,
        "profiling": True,
        "deadline_ms": 800,
        "reasons_deadline_ms": 15000,
        "debug": False,
    }
    assert RecommendRequest.model_validate_json(json.dumps(body)).k == 10
    assert RecommendRequest.model_validate_json("{}").user_id is None


@pytest.mark.parametrize(
    "body",
    [
        {"k": 0},
        {"k": -1},
        {"k": 101},
        {"k": 10**400},
        {"k": "10"},
        {"k": 10.5},
        {"k": True},
        {"k": None},
        {"explain": 1},
        {"explain": "true"},
        {"user_id": 196},
        {"user_id": ""},
        {"user_id": "a b"},
        {"user_id": "a\n"},
        {"user_id": "a\u0000"},
        {"user_id": "ü"},
        {"user_id": "x" * 129},
        {"user_id": ["u1"]},
        {"seed_items": ["i"] * 51},
        {"seed_items": "i1"},
        {"seed_items": [None]},
        {"candidates": []},
        {"candidates": ["i"] * 1001},
        {"exclude_items": ["i"] * 1001},
        {"query": ""},
        {"query": "q" * 513},
        {"language": "english language"},
        {"language": ""},
        {"language": "en_US"},
        {"language": "e\n"},
        {"cursor": "a/b"},
        {"cursor": "a" * 16_385},
        {"diversity": 1.1},
        {"diversity": -0.1},
        {"diversity": "0.5"},
        {"deadline_ms": 0},
        {"deadline_ms": 60_001},
        {"reasons_deadline_ms": -1},
        {"context": {"a": 1}},
        {"context": {f"k{n}": "v" for n in range(17)}},
        {"context": {"bad\nname": "v"}},
        {"filters": {"genre": {}}},
        {"filters": {"genre": {"any_of": ["x"] * 101}}},
        {"filters": {"genre": {"any_of": [1]}}},
        {"filters": {"genre": {"between": [1, 2]}}},
        {"filters": {"year": {"gte": "1990"}}},
        {"filters": {"year": {"gte": True}}},
        {"filters": {"year": {"gte": 10**400}}},
        {"filters": {f"k{n}": {"gte": 1} for n in range(17)}},
        {"unknown": 1},
    ],
    ids=lambda b: json.dumps(b)[:40],
)
def test_a_request_outside_the_contract_is_refused(body) -> None:
    problems(RecommendRequest, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("template", ['{"diversity": %s}', '{"k": %s}', '{"filters": {"year": {"lte": %s}}}'])
def test_numbers_that_are_none_are_refused(number: str, template: str) -> None:
    problems(RecommendRequest, template % number)


def test_a_click_needs_no_more_than_ids_and_type() -> None:
    event = EventIn.model_validate(EVENT)
    assert event.value == 1.0 and event.timestamp_ms is None


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": None},
        {"item_id": None},
        {"event_id": None},
        {"type": "buy"},
        {"type": 2},
        {"type": "search"},
        {"type": "search", "item_id": None},
        {"type": "search", "query": "q"},
        {"query": "q"},
        {"timestamp_ms": -1},
        {"timestamp_ms": 1.5},
        {"timestamp_ms": "2024"},
        {"value": "5"},
        {"value": True},
        {"value": 1e300},
        {"value": float("inf")},
        {"value": float("nan")},
        {"impression": "x" * 257},
        {"extra": 1},
    ],
    ids=lambda c: json.dumps(c)[:40],
)
def test_an_event_outside_the_contract_is_refused(change) -> None:
    with pytest.raises(ValidationError):
        EventIn.model_validate({**EVENT, **change})


def test_a_search_carries_a_query_in_place_of_an_item() -> None:
    event = EventIn.model_validate({"event_id": "e", "session_id": "s", "type": "search", "query": "space"})
    assert event.item_id is None and event.query == "space"


def test_values_fit_the_columns_they_are_stored_in() -> None:
    import numpy as np

    for value in (-1e12, 1e12, 10**12):
        assert np.isfinite(np.float32(EventIn.model_validate({**EVENT, "value": value}).value))
