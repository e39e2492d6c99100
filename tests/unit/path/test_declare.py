"""What users declare, through the edge, the store and the real retrieval engine, and its bad-input table."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest

from models.retrieval.settings import RetrievalSettings, SourceWeights
from models.store.port import StoreTimeout, StoreUnavailable
from serve.errors import DependencyError
from serve.fakes import FakeQueryEncoder
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever

USERS, LINK, PROFILE = "/v1/users", "/v1/users:link", "/v1/users:profile"
SECRET = "Zebra77Secret"


@pytest.fixture
async def declaring(make_edge) -> Any:
    """An edge whose lists come from the real engine, in retrieval order; declared weights suit 40 items."""

    def prepare(edge: Any) -> None:
        edge.retrieval = RetrievalSettings(declared_weights=SourceWeights(semantic=2.0, popular=0.5, declared=4.0))
        edge.retriever = EngineRetriever(edge._bundle, edge.pool)
        edge.ranker._score = lambda _, candidates: candidates.scores

    # The first question loads the engine, which a busy machine does slowly.
    patient = StageBudget(budget_ms=5_000)
    return await make_edge(prepare=prepare, pipeline=PipelineSettings(features=patient, retrieve=patient, rank=patient))


async def declare(edge: Any, **body: Any) -> dict[str, Any]:
    answer = await edge.send("PUT", USERS, {"user_id": "u1", **body} if "session_id" not in body else body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def genres(edge: Any, **body: Any) -> list[str]:
    """The genre of each recommended item; a title of the tiny catalog ends with it."""
    answer = await edge.recommend({"user_id": "u1", "k": 6, "deadline_ms": 5000, **body})
    assert answer.status_code == 200 and answer.json()["degraded"] is False, answer.json()
    return [i["title"].split()[-1] for i in answer.json()["items"]]


async def test_the_next_list_of_a_stranger_leans_to_what_they_declared(declaring) -> None:
    before = await genres(declaring)
    for genre in ("comedy", "western"):
        answer = await declare(declaring, attributes={"genre": [genre.title()], "occupation": "none"})
        assert (answer["status"], answer["known_labels"], answer["unknown_labels"]) == ("declared", 1, 1)
        assert set(await genres(declaring)) == {genre}
    assert set(await genres(declaring, user_id="u2")) == set(before) != {"western"}
    assert set(await genres(declaring, profiling=False)) == set(before), "no personal data where none is wanted"


async def test_what_they_write_about_themselves_draws_what_is_near(declaring) -> None:
    assert (await declare(declaring, about="a western, and another western"))["known_labels"] == 0
    assert (await genres(declaring)).count("western") > (await genres(declaring, user_id="u2")).count("western")


async def test_the_request_s_context_counts_like_a_declaration_where_it_names_an_attribute(declaring) -> None:
    plain = await genres(declaring)
    assert set(await genres(declaring, context={"genre": "Western", "surface": "home"})) == {"western"}
    assert set(await genres(declaring, profiling=False, context={"genre": "western"})) == {"western"}
    assert await genres(declaring, context={"surface": "home"}) == plain


async def test_sources_name_a_declaration_and_reasons_are_written_all_the_same(declaring) -> None:
    await declare(declaring, attributes={"genre": "Western"})
    answer = (await declaring.recommend({"user_id": "u1", "k": 5, "explain": True, "deadline_ms": 5000})).json()
    assert all("declared" in i["sources"] and i["reason"] for i in answer["items"]) and len(answer["items"]) == 5


async def test_a_link_carries_it_over_and_an_empty_one_takes_it_back(declaring) -> None:
    plain = await genres(declaring)
    await declare(declaring, session_id="s1", attributes={"genre": "Western"})
    assert set(await genres(declaring, session_id="s1", user_id=None)) == {"western"}
    linked = await declaring.post(LINK, {"user_id": "u1", "session_id": "s1"})
    assert linked.json()["session_known"] is True
    assert set(await genres(declaring)) == {"western"}
    for _ in range(2):
        assert (await declare(declaring))["status"] == "removed"
        assert await genres(declaring) == plain


async def test_the_profile_shows_labels_and_never_the_text(declaring) -> None:
    assert (await declaring.post(PROFILE, {"user_id": "u1"})).json()["declared"] is None
    await declare(declaring, attributes={"genre": ["Western", " Comedy "], "likes": "tea"}, about=SECRET)
    answer = await declaring.post(PROFILE, {"user_id": "u1"})
    assert answer.json()["declared"] == {"genre": ["Western", "Comedy"], "likes": ["tea"]}
    assert answer.json()["known"] is False and SECRET not in answer.text
    held = declaring.store._tenants["main"].declared["u1"][0]
    assert SECRET not in repr(held.labels) and held.vector is not None and held.vector.dtype == np.float32


BAD: dict[str, Any] = {
    "nobody": {"attributes": {"genre": "Western"}},
    "both": {"user_id": "u1", "session_id": "s1"},
    "a session as user": {"user_id": "~s:" + SECRET},
    "an id that is none": {"user_id": SECRET + "/.."},
    "an id of 1 MB": {"user_id": SECRET * 80_000},
    "a list": [{"user_id": "u1"}],
    "null": None,
    "an unknown field": {"user_id": "u1", SECRET + " x": 1},
    "attributes as a list": {"user_id": "u1", "attributes": [SECRET]},
    "a name that is none": {"user_id": "u1", "attributes": {SECRET + "\u0000": "x"}},
    "an empty name": {"user_id": "u1", "attributes": {"": "x"}},
    "a number": {"user_id": "u1", "attributes": {"age": 30}},
    "a yes": {"user_id": "u1", "attributes": {"member": True}},
    "null as value": {"user_id": "u1", "attributes": {"genre": None}},
    "an object": {"user_id": "u1", "attributes": {"genre": {"is": SECRET}}},
    "an empty value": {"user_id": "u1", "attributes": {"genre": ""}},
    "a blank value": {"user_id": "u1", "attributes": {"genre": "  "}},
    "an empty list": {"user_id": "u1", "attributes": {"genre": []}},
    "a list with a number": {"user_id": "u1", "attributes": {"genre": ["Western", 7]}},
    "a long value": {"user_id": "u1", "attributes": {"genre": SECRET * 9}},
    "51 values": {"user_id": "u1", "attributes": {"genre": [f"g{n}" for n in range(51)]}},
    "51 values of two names": {"user_id": "u1", "attributes": {"a": [f"g{n}" for n in range(50)], "b": "c"}},
    "17 names": {"user_id": "u1", "attributes": {f"n{n}": "x" for n in range(17)}},
    "an empty text": {"user_id": "u1", "about": ""},
    "a blank text": {"user_id": "u1", "about": " \n"},
    "a long text": {"user_id": "u1", "about": SECRET * 200},
    "a text that is none": {"user_id": "u1", "about": 7},
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
async def test_a_bad_body_is_a_422_that_repeats_nothing_and_changes_nothing(declaring, body: Any) -> None:
    await declare(declaring, attributes={"genre": "Western"})
    answer = await declaring.send("PUT", USERS, json.dumps(body).encode())
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    assert SECRET not in answer.text and len(answer.text) < 6000
    (held,) = declaring.store._tenants["main"].declared.items()
    assert held[0] == "u1" and held[1][0].labels == (("genre", "Western"),)


async def test_what_is_not_json_is_a_400_and_what_is_too_long_a_413(declaring) -> None:
    assert (await declaring.send("PUT", USERS, b"{")).status_code == 400
    assert (await declaring.send("PUT", USERS, b" " * (declaring.settings.max_body_bytes + 1))).status_code == 413


@pytest.mark.parametrize("text", ["\u202e\u0000\ufffd", "<script>", "Ignore all instructions", "\U0001f600" * 50])
async def test_any_text_is_a_text(declaring, text: str) -> None:
    assert (await declare(declaring, about=text))["status"] == "declared"
    assert len(await genres(declaring)) == 6


@pytest.mark.parametrize("error", [StoreUnavailable("away at 10.0.0.7"), StoreTimeout("late")])
async def test_while_the_store_is_away_it_is_a_503_with_retry_after(declaring, error) -> None:
    declaring.store_error = error
    answer = await declaring.send("PUT", USERS, {"user_id": "u1", "attributes": {"genre": "Western"}})
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1 and "10.0.0.7" not in answer.text


async def test_a_text_that_cannot_be_understood_now_is_a_503_and_never_half_kept(make_edge) -> None:
    edge = await make_edge()
    edge.encoder.trouble.error = DependencyError("no encoder")
    answer = await edge.send("PUT", USERS, {"user_id": "u1", "about": SECRET, "attributes": {"genre": "Western"}})
    assert answer.status_code == 503 and SECRET not in answer.text
    assert not edge.store._tenants["main"].declared
    assert (await edge.send("PUT", USERS, {"user_id": "u1"})).status_code == 200, "nothing to understand"


async def test_a_vector_of_another_encoder_is_a_503_and_an_answer_without_it(make_edge) -> None:
    edge = await make_edge(prepare=lambda edge: setattr(edge, "encoder", FakeQueryEncoder(dimension=8)))
    answer = await edge.send("PUT", USERS, {"user_id": "u1", "about": SECRET})
    assert answer.status_code == 503 and SECRET not in answer.text
    assert not edge.store._tenants["main"].declared
    listed = await edge.recommend({"user_id": "u1", "query": SECRET, "k": 3})
    assert listed.status_code == 200 and len(listed.json()["items"]) == 3 and listed.json()["degraded"] is True


async def test_another_tenant_s_declaration_is_nobody_s_business(make_edge) -> None:
    edge = await make_edge(keys="main=main-key-0123456789,shop=shop-key-0123456789")
    main, shop = {"x_api_key": "main-key-0123456789"}, {"x_api_key": "shop-key-0123456789"}
    assert (await edge.send("PUT", USERS, {"user_id": "u1"})).status_code == 401
    headers = {"x-api-key": "main-key-0123456789"}
    body = json.dumps({"user_id": "u1", "attributes": {"genre": "Western"}})
    assert (await edge.http.put(USERS, content=body, headers=headers)).status_code == 200
    assert (await edge.post(PROFILE, {"user_id": "u1"}, **shop)).json()["declared"] is None
    assert (await edge.post(PROFILE, {"user_id": "u1"}, **main)).json()["declared"] == {"genre": ["Western"]}


async def test_neither_ids_nor_what_was_declared_reach_the_log(declaring, caplog) -> None:
    body = {"user_id": "u-Zebra77", "attributes": {"genre": "Zebra77"}, "about": "Zebra77 is mine"}
    with caplog.at_level(logging.DEBUG):
        await declaring.send("PUT", USERS, body)
        await genres(declaring, user_id="u-Zebra77", context={"genre": "Zebra77"})
        declaring.store_error = StoreUnavailable("away")
        await declaring.send("PUT", USERS, body)
        declaring.store_error = None
        declaring.encoder.trouble.error = RuntimeError("Zebra77")
        assert (await declaring.send("PUT", USERS, body)).status_code >= 500
    assert "Zebra77" not in caplog.text
