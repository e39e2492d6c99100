"""A posted search steers the lists that follow: through the edge, the store and the real retrieval engine."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from models.encoder import HashEncoder
from serve.errors import DependencyError, OverloadError
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever

SECRET = "western Zebra77Secret"
PROFILE = "/v1/users:profile"


def search(number: int = 1, query: str = "western", **who: Any) -> dict[str, Any]:
    return {"event_id": f"s{number}", "type": "search", "query": query, **(who or {"user_id": "u1"})}


@pytest.fixture
async def searching(make_edge) -> Any:
    """An edge whose lists come from the real engine, in retrieval order."""

    def prepare(edge: Any) -> None:
        edge.retriever = EngineRetriever(edge._bundle, edge.pool)
        edge.ranker._score = lambda _, candidates: candidates.scores

    return await make_edge(prepare=prepare)


async def ids(edge: Any, **body: Any) -> list[str]:
    answer = await edge.recommend({"user_id": "u1", "k": 10, "deadline_ms": 5000, **body})
    assert answer.status_code == 200 and answer.json()["degraded"] is False, answer.json()
    return [i["item_id"] for i in answer.json()["items"]]


def place_of_westerns(edge: Any, found: list[str]) -> float:
    """Where the westerns stand in a list on average."""
    titles = [edge.tiny.bundle.catalog.title(int(row)) for row in edge.tiny.bundle.catalog.rows(found)]
    return float(np.mean([at for at, title in enumerate(titles) if title.endswith("western")]))


async def test_the_list_after_a_search_is_another_one_and_closer_to_it(searching) -> None:
    before = await ids(searching, k=40)
    assert (await searching.events(search())).json()["results"][0]["status"] == "accepted"
    after = await ids(searching, k=40)
    assert after != before and place_of_westerns(searching, after) < place_of_westerns(searching, before)
    assert await ids(searching, k=40, user_id="somebody") == before
    assert ("intent", "ok") in [(name, outcome) for name, outcome, _ in searching.metrics.stages]


async def test_a_session_s_search_follows_it_to_its_user(searching) -> None:
    before = await ids(searching)
    await searching.events(search(session_id="s1"))
    assert await ids(searching) == before
    together = await ids(searching, session_id="s1")
    assert together != before
    linked = (await searching.post("/v1/users:link", {"user_id": "u1", "session_id": "s1"})).json()
    assert (linked["session_known"], linked["events"]) == (True, 0)
    assert await ids(searching) == together


async def test_without_profiling_a_search_has_no_say(searching) -> None:
    before = await ids(searching, profiling=False)
    await searching.events(search())
    assert await ids(searching, profiling=False) == before


async def test_a_query_of_the_request_comes_before_what_was_searched(searching) -> None:
    asked = await ids(searching, query="comedy")
    await searching.events(search())
    assert await ids(searching, query="comedy") == asked != await ids(searching)


async def test_an_older_search_that_comes_later_changes_nothing(searching) -> None:
    now = time.time_ns() // 1_000_000
    await searching.events(search(1, timestamp_ms=now - 1000, user_id="u1"))
    steered = await ids(searching)
    await searching.events(search(2, "comedy", timestamp_ms=now - 5000, user_id="u1"))
    assert await ids(searching) == steered
    both = [search(3, "comedy", timestamp_ms=now, user_id="u1"), search(4, "drama", timestamp_ms=now - 9, user_id="u1")]
    await searching.events(both)
    intent = (await searching.store.fetch("main", "u1", None, timeout_s=1)).intent
    assert float(intent @ HashEncoder(32).encode(["comedy"])[0]) > 0.99


async def test_only_the_newest_search_of_each_owner_is_embedded(searching) -> None:
    calls = searching.encoder.trouble
    many = [search(n, f"word{n}", user_id=f"u{n % 2}") for n in range(30)]
    results = (await searching.events(many)).json()["results"]
    assert {r["status"] for r in results} == {"accepted"} and calls.calls == 2
    intent = (await searching.store.fetch("main", "u1", None, timeout_s=1)).intent
    assert float(intent @ HashEncoder(32).encode(["word29"])[0]) > 0.99


TROUBLES = {
    "away": ({"error": DependencyError("away")}, "unavailable"),
    "full": ({"error": OverloadError("full")}, "unavailable"),
    "hanging": ({"hangs": True}, "timeout"),
}


@pytest.mark.parametrize(("trouble", "outcome"), TROUBLES.values(), ids=TROUBLES.keys())
async def test_while_the_encoder_is_away_a_search_is_taken_and_steers_nothing(make_edge, trouble, outcome) -> None:
    quick = PipelineSettings(query=StageBudget(budget_ms=50, minimum_ms=1))
    edge = await make_edge(pipeline=quick)
    for name, value in trouble.items():
        setattr(edge.encoder.trouble, name, value)
    started = time.monotonic()
    response = await edge.events([search(), {"event_id": "e1", "user_id": "u1", "item_id": "i05", "type": "click"}])
    assert time.monotonic() - started < 2.0
    assert [r["status"] for r in response.json()["results"]] == ["accepted"] * 2
    found = await edge.store.fetch("main", "u1", None, timeout_s=1)
    assert found.intent is None and found.item_ids == ("i05",)
    assert [(name, what) for name, what, _ in edge.metrics.stages] == [("intent", outcome)]


async def test_switched_off_nothing_is_embedded_and_nothing_kept(make_edge) -> None:
    edge = await make_edge(pipeline=PipelineSettings(intent_s=0))
    await edge.events(search())
    assert edge.encoder.trouble.calls == 0
    assert (await edge.store.fetch("main", "u1", None, timeout_s=1)).intent is None


async def test_the_pipeline_lets_a_search_fade_and_drops_one_of_another_encoder(searching) -> None:
    await searching.events(search())
    fresh = await searching.store.fetch("main", "u1", None, timeout_s=1)
    before = await ids(searching, user_id="somebody")

    class Aged:
        def __init__(self, **changes: Any) -> None:
            self.changes = changes

        async def fetch(self, *_: Any) -> Any:
            return replace(fresh, **self.changes)

    asked: list[Any] = []
    engine, retrieve = searching.retriever, searching.retriever.retrieve

    async def listening(call: Any, query: Any) -> Any:
        asked.append(query.intent)
        return await retrieve(call, query)

    engine.retrieve = listening
    pipeline = searching.edge._recommend._pipeline
    for changes, length in [
        ({}, 1.0),
        ({"intent_ms": fresh.intent_ms - 900_000}, 0.5),
        ({"intent_ms": fresh.intent_ms - 1_800_000}, None),
        ({"intent": np.ones(33, np.float32)}, None),
    ]:
        pipeline._fetcher = Aged(**changes)
        found = await ids(searching)
        if length is None:
            assert asked[-1] is None and found == before
        else:
            assert float(np.linalg.norm(asked[-1])) == pytest.approx(length, abs=0.01)


async def test_a_profile_says_that_there_is_a_search_and_never_what(searching, caplog) -> None:
    with caplog.at_level(logging.DEBUG, logger="raycommend"):
        assert (await searching.post(PROFILE, {"user_id": "u1"})).json()["search_age_ms"] is None
        await searching.events(search(query=SECRET, user_id="u1", timestamp_ms=time.time_ns() // 1_000_000 - 5000))
        response = await searching.post(PROFILE, {"user_id": "u1"})
    answer = response.json()
    assert 5000 <= answer["search_age_ms"] < 65_000 and answer["known"] is False
    assert not {"intent", "query", "vector"} & answer.keys()
    assert "Zebra77" not in response.text and "Zebra77" not in caplog.text
    stored = repr([vars_of(searching.store._tenants["main"])])
    assert "Zebra77" not in stored and "western" not in stored


def vars_of(tenant: Any) -> list[Any]:
    return [getattr(tenant, name) for name in tenant.__slots__]
