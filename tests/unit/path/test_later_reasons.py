"""Reasons by decision id: the list is answered at once, the words can be fetched for a while."""

import json

import pytest

from models.explain.decisions import DecisionBook, ExplainedList
from models.explain.evidence import EMPTY, Evidence
from models.explain.reason_cache import TieredReasons
from models.store.cache_store import MemoryCache
from models.store.port import StoreUnavailable


async def explained(edge, **body) -> dict:
    answer = (await edge.recommend({"user_id": "u1", "k": 3, "explain": True, **body})).json()
    await edge.decisions.flush()
    return answer


def path(answer: dict) -> str:
    return f"/v1/decisions/{answer['decision_id']}/reasons"


async def test_the_reasons_of_a_list_come_later_in_its_order(edge) -> None:
    listed = await explained(edge)
    response = await edge.get(path(listed))
    assert response.status_code == 200
    body = response.json()
    assert body["decision_id"] == listed["decision_id"] and not body["degraded"]
    assert [(r["item_id"], r["rank"]) for r in body["reasons"]] == [(i["item_id"], i["rank"]) for i in listed["items"]]
    assert {r["reason_source"] for r in body["reasons"]} == {"llm"}
    assert [r["evidence"] for r in body["reasons"]] == [i["evidence"] for i in listed["items"]]
    assert edge.explainer.tasks[-1].deadline_ms == edge.settings.stream_reasons_deadline_ms


async def test_they_can_be_streamed_as_they_are_written(edge) -> None:
    response = await edge.get(path(await explained(edge)), accept="text/event-stream")
    assert response.headers["content-type"].startswith("text/event-stream")
    names = [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]
    assert names == ["reason", "reason", "reason", "done"]
    last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["degraded"] is False


async def test_the_caller_bounds_the_time_and_none_means_no_model(edge) -> None:
    body = (await edge.get(path(await explained(edge)) + "?reasons_deadline_ms=0")).json()
    assert {r["reason_source"] for r in body["reasons"]} == {"cache"} and not edge.explainer.tasks[-1].allow_llm


async def test_what_was_written_once_comes_from_the_cache(make_edge) -> None:
    def with_cache(edge) -> None:
        edge.reason_cache = TieredReasons("m", shared=edge.cache)

    edge = await make_edge(prepare=with_cache)
    listed = await explained(edge)
    first, second = [(await edge.get(path(listed))).json()["reasons"] for _ in range(2)]
    assert {r["reason_source"] for r in first} == {"llm"} and {r["reason_source"] for r in second} == {"cache"}
    assert [r["reason"] for r in first] == [r["reason"] for r in second]


@pytest.mark.parametrize("unknown", ["f" * 32, "no-such-decision"])
async def test_an_unknown_decision_is_not_sampled(edge, unknown: str) -> None:
    response = await edge.get(f"/v1/decisions/{unknown}/reasons")
    assert (response.status_code, response.json()["title"]) == (404, "not_sampled")


async def test_a_list_that_was_not_explained_is_not_sampled(edge) -> None:
    answer = await explained(edge, explain=False)
    assert (await edge.get(path(answer))).status_code == 404


async def test_another_tenant_s_decision_is_not_sampled(make_edge) -> None:
    edge = await make_edge(keys="shop=0123456789abcdef,other=fedcba9876543210")
    answer = (await edge.recommend({"k": 3, "explain": True}, x_api_key="0123456789abcdef")).json()
    await edge.decisions.flush()
    assert (await edge.get(path(answer), x_api_key="fedcba9876543210")).status_code == 404
    assert (await edge.get(path(answer), x_api_key="0123456789abcdef")).status_code == 200
    assert (await edge.get(path(answer))).status_code == 401


async def test_a_cache_store_that_is_away_delays_no_list_and_is_a_503_later(edge) -> None:
    edge.cache.error = StoreUnavailable("gone")
    answer = await explained(edge)
    assert len(answer["items"]) == 3 and edge.decisions.dropped == 1
    assert (await edge.get(path(answer))).status_code == 503


@pytest.mark.parametrize(
    "query", ["?k=3", "?reasons_deadline_ms=x", "?reasons_deadline_ms=120001", "?reasons_deadline_ms=1&k=2"]
)
async def test_other_parameters_are_refused(edge, query: str) -> None:
    assert (await edge.get(path(await explained(edge)) + query)).status_code == 422


async def test_no_user_id_waits_in_the_cache_store(edge) -> None:
    await explained(edge, user_id="Zebra77")
    assert edge.cache.values and not any(b"Zebra77" in value for _, value in edge.cache.values.values())


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b"[1]", b'{"v":2,"l":"en","r":"r","i":[],"e":[]}'])
def test_what_cannot_be_read_is_no_list(value: bytes) -> None:
    assert ExplainedList.from_bytes(value) is None


async def test_lists_come_back_whole_and_expire() -> None:
    now = [0.0]
    book = DecisionBook(MemoryCache(clock=lambda: now[0]), ttl_s=10)
    kept = ExplainedList("zh", "r-1", ("a", "b"), (EMPTY, Evidence("Heat")))
    book.keep("main", "d", kept)
    await book.flush()
    assert await book.read("main", "d") == kept
    now[0] = 10.0
    assert await book.read("main", "d") is None
