"""The HTTP edge at work: answers, streams, headers, credentials, admission, records and what is never logged."""

import asyncio
import json
import logging
import re

import httpx
import pytest

from models.events import session_owner
from serve.degradation import DegradationLevel
from serve.errors import ContractViolation, DependencyError
from serve.fakes import FakeExplainer
from serve.http import loop_lag

CLICK = {"event_id": "e1", "user_id": "u1", "item_id": "i01", "type": "click"}
KEYS = "main=main-key-0123456789,shop=shop-key-0123456789"


async def test_an_answer_has_everything_the_contract_names(edge) -> None:
    from serve.schemas import RecommendAnswer

    response = await edge.recommend({"user_id": "u1", "k": 4, "explain": True})
    answer = response.json()
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    RecommendAnswer.model_validate(answer)
    assert answer["release"] == edge.tiny.release.release_id and not answer["degraded"]
    assert [i["rank"] for i in answer["items"]] == [1, 2, 3, 4]
    assert all(i["title"].startswith("Film") and i["sources"] and i["impression"] for i in answer["items"])
    assert answer["request_id"] == response.headers["x-request-id"]


async def test_the_next_recommendation_reflects_an_acknowledged_event(edge) -> None:
    first = (await edge.recommend({"user_id": "new", "k": 5})).json()
    taken = first["items"][0]["item_id"]
    sent = await edge.events({**CLICK, "user_id": "new", "item_id": taken})
    assert sent.status_code == 202 and sent.json()["results"][0]["status"] == "accepted"
    second = (await edge.recommend({"user_id": "new", "k": 5})).json()
    assert taken not in [i["item_id"] for i in second["items"]]
    assert first["profile_age_ms"] is None and 0 <= second["profile_age_ms"] < 60_000


async def test_an_event_sent_twice_is_a_duplicate(edge) -> None:
    assert (await edge.events(CLICK)).json()["results"] == [{"event_id": "e1", "status": "accepted"}]
    assert (await edge.events(CLICK)).json()["results"] == [{"event_id": "e1", "status": "duplicate"}]


async def test_a_session_is_a_profile_of_its_own(edge) -> None:
    await edge.events({"event_id": "e1", "session_id": "s1", "item_id": "i01", "type": "view"})
    assert session_owner("s1") in edge.store._tenants["main"].profiles
    answer = (await edge.recommend({"session_id": "s1", "k": 40})).json()
    assert "i01" not in [i["item_id"] for i in answer["items"]]


async def test_pages_follow_the_cursor_and_never_repeat(edge) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(20):
        answer = (await edge.recommend({"user_id": "u1", "k": 7, "cursor": cursor})).json()
        seen += [i["item_id"] for i in answer["items"]]
        cursor = answer["next_cursor"]
        if cursor is None:
            break
    assert cursor is None and len(seen) == len(set(seen)) == 40


async def test_a_stream_is_the_items_then_one_reason_each_then_done(edge) -> None:
    events = await edge.stream({"user_id": "u1", "k": 3, "explain": True})
    assert [name for name, _ in events] == ["items", "reason", "reason", "reason", "done"]
    items, reasons, done = events[0][1]["items"], [e for n, e in events if n == "reason"], events[-1][1]
    assert all(i["reason"] is None and i["reason_source"] == "none" for i in items)
    assert {r["item_id"] for r in reasons} == {i["item_id"] for i in items}
    assert all(r["reason"] and r["reason_source"] == "llm" for r in reasons)
    assert done["request_id"] == events[0][1]["request_id"] and done["degraded"] is False
    assert {"features", "retrieve", "rank", "select", "total", "reasons"} <= set(done["timings_ms"])


async def test_a_stream_without_explain_is_items_and_done(edge) -> None:
    assert [n for n, _ in await edge.stream({"k": 3})] == ["items", "done"]
    assert edge.explainer.tasks == []


async def test_an_explainer_that_dies_halfway_leaves_templates_and_a_flag(edge) -> None:
    edge.explainer._stops_after, edge.explainer.trouble.error = 1, DependencyError("replica gone")
    events = await edge.stream({"user_id": "u1", "k": 3, "explain": True})
    sources = [e["reason_source"] for n, e in events if n == "reason"]
    assert sources == ["llm", "template", "template"]
    assert events[-1][0] == "done" and events[-1][1]["degraded_reasons"] == ["explainer_unavailable"]


async def test_an_explainer_that_raises_anything_costs_only_its_words(make_edge) -> None:
    edge = await make_edge()
    edge.explainer.trouble.error = RuntimeError("engine")
    answer = (await edge.recommend({"k": 2, "explain": True})).json()
    assert [i["reason_source"] for i in answer["items"]] == ["template", "template"]
    assert answer["degraded_reasons"] == ["explainer_unavailable"]


async def test_an_explainer_that_hangs_is_given_up_at_the_reasons_deadline(edge) -> None:
    edge.explainer.trouble.hangs = True
    async with asyncio.timeout(5):
        events = await edge.stream({"k": 2, "explain": True, "reasons_deadline_ms": 20})
    assert [e["reason_source"] for n, e in events if n == "reason"] == ["template", "template"]
    assert edge.explainer.closed == 1


async def test_a_slow_reader_of_reasons_is_not_cancelled_by_the_explainer_s_clock(edge) -> None:
    from serve.context import RequestContext
    from serve.deadline import Deadline
    from serve.reasons import write_reasons

    ctx = RequestContext("r", "main", "r", Deadline.after_ms(100), now_ms=0)
    evidence = [_evidence(edge), _evidence(edge)]
    sources = []
    async for reason in write_reasons(ctx, FakeExplainer(), evidence, language="en", deadline_ms=10.0):
        await asyncio.sleep(0.3)  # longer than the deadline and its slack
        sources.append(reason.source)
    assert sources == ["llm", "llm"]  # what was ready is not thrown away


def _evidence(edge):
    from models.explain.evidence import build_evidence

    return build_evidence([], 0, catalog=edge.tiny.bundle.catalog)


async def test_json_answers_wait_for_no_language_model_unless_asked(edge) -> None:
    await edge.recommend({"k": 2, "explain": True})
    await edge.recommend({"k": 2, "explain": True, "reasons_deadline_ms": 500})
    assert [t.allow_llm for t in edge.explainer.tasks] == [False, True]
    assert edge.explainer.tasks[1].deadline_ms == 500


async def test_deadlines_are_shortened_to_what_the_server_grants(make_edge) -> None:
    edge = await make_edge(max_reasons_deadline_ms=200)
    await edge.recommend({"k": 2, "explain": True, "reasons_deadline_ms": 100_000})
    assert edge.explainer.tasks[0].deadline_ms == 200


async def test_a_request_without_a_deadline_gets_the_configured_one(make_edge) -> None:
    edge = await make_edge(default_deadline_ms=30, pipeline={"retrieve": {"budget_ms": 5000}})
    edge.retriever.trouble.hangs = True
    patient = (await edge.recommend({"deadline_ms": 600})).json()["timings_ms"]["total"]
    hasty = (await edge.recommend({})).json()["timings_ms"]["total"]
    assert hasty < 500 < patient


async def test_what_goes_wrong_before_the_list_is_a_proper_error_of_a_stream_too(edge) -> None:
    response = await edge.recommend({"cursor": "A" * 60}, accept="text/event-stream")
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("given", ["abc-123", "a.b_c:d~e", "x" * 128])
async def test_a_valid_request_id_is_echoed_everywhere(edge, given: str) -> None:
    response = await edge.recommend({"k": 1}, x_request_id=given)
    assert response.headers["x-request-id"] == response.json()["request_id"] == given
    refused = await edge.recommend({"k": 0}, x_request_id=given)
    assert refused.headers["x-request-id"] == refused.json()["request_id"] == given
    assert (await edge.events(CLICK, x_request_id=given)).headers["x-request-id"] == given


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 129, "<script>", "a\tb", "%0d%0aSet-Cookie: a=b", "ü".encode().decode("latin-1")]
)
async def test_any_other_request_id_is_replaced(edge, given: str) -> None:
    headers = [(b"x-request-id", given.encode("latin-1")), (b"content-type", b"application/json")]
    response = await edge.http.post("/v1/recommend", content=b"{}", headers=headers)
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_server_timing_has_one_entry_per_stage(edge) -> None:
    for accept in ("application/json", "text/event-stream"):
        response = await edge.recommend({"user_id": "u1", "query": "water"}, accept=accept)
        entries = dict(e.split(";dur=") for e in response.headers["server-timing"].split(", "))
        assert set(entries) == {"features", "query", "retrieve", "rank", "select", "total"}
        assert all(float(v) >= 0 for v in entries.values())


async def test_the_tenant_comes_from_the_credential_only(make_edge) -> None:
    edge = await make_edge(keys=KEYS)
    assert (await edge.recommend({})).status_code == 401
    refused = await edge.events(CLICK, x_api_key="wrong-key-0123456789")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
    assert "wrong-key" not in refused.text
    assert (await edge.events(CLICK, authorization="Bearer shop-key-0123456789")).status_code == 202
    assert "main" not in {t for t, s in edge.store._tenants.items() if s.profiles}
    forged = await edge.recommend({"tenant": "shop"}, x_api_key="main-key-0123456789", x_tenant="shop")
    assert forged.status_code == 422


async def test_tokens_of_one_tenant_are_worthless_in_another(make_edge) -> None:
    edge = await make_edge(keys=KEYS)
    shop, main = {"x_api_key": "shop-key-0123456789"}, {"x_api_key": "main-key-0123456789"}
    answer = (await edge.recommend({"user_id": "u1", "k": 3}, **shop)).json()
    assert (await edge.recommend({"user_id": "u1", "cursor": answer["next_cursor"]}, **main)).status_code == 422
    item = answer["items"][0]
    click = {
        **CLICK,
        "item_id": item["item_id"],
        "impression": item["impression"],
        "decision_id": answer["decision_id"],
    }
    assert (await edge.events(click, **main)).json()["results"][0]["status"] == "invalid"
    assert (await edge.events(click, **shop)).json()["results"][0]["status"] == "accepted"


async def test_above_its_capacity_the_edge_refuses_before_any_work(make_edge) -> None:
    edge = await make_edge(max_in_flight=2, pipeline={"retrieve": {"budget_ms": 2000}})
    edge.retriever.trouble.hangs = True
    busy = [asyncio.create_task(edge.recommend({"deadline_ms": 500})) for _ in range(2)]
    while edge.retriever.trouble.calls < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    refused = await edge.recommend({})
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert refused.json()["title"] == "Overloaded" and edge.retriever.trouble.calls == 2
    assert (await edge.events(CLICK)).status_code == 503
    answers = await asyncio.gather(*busy)
    assert {a.status_code for a in answers} == {200} and edge.edge.in_flight == 0


async def test_a_crowded_edge_plans_less_and_says_so(make_edge) -> None:
    edge = await make_edge(max_in_flight=1)
    answer = (await edge.recommend({"explain": True, "reasons_deadline_ms": 100})).json()
    assert answer["degradation"]["planned"] == DegradationLevel.no_ranker.name
    assert {"rank_skipped", "fewer_candidates"} <= set(answer["degraded_reasons"])
    assert edge.ranker.trouble.calls == 0 and edge.explainer.tasks[0].allow_llm is False


async def test_a_stream_counts_as_in_flight_until_its_last_byte(edge) -> None:
    edge.explainer.trouble.hangs = True
    task = asyncio.create_task(edge.stream({"k": 1, "explain": True, "reasons_deadline_ms": 100}))
    while not edge.explainer.trouble.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert edge.edge.in_flight == 1
    await task
    assert edge.edge.in_flight == 0


@pytest.mark.parametrize(
    "error", [ContractViolation("bug with Zebra77"), RuntimeError("u-Zebra77 clicked"), KeyError("Zebra77")]
)
async def test_a_bug_is_a_500_without_details_and_its_message_is_never_logged(edge, error, caplog) -> None:
    edge.retriever.trouble.error = error
    with caplog.at_level(logging.DEBUG):
        response = await edge.recommend({"user_id": "u-Zebra77"})
    assert response.status_code == 500 and response.json()["title"] == "Internal error"
    assert "Zebra77" not in response.text and "Zebra77" not in caplog.text
    assert type(error).__name__ in caplog.text and response.json()["request_id"] in caplog.text
    assert edge.metrics.refusals == [500]


async def test_ids_and_texts_never_reach_the_log(edge, caplog) -> None:
    with caplog.at_level(logging.DEBUG, logger="raycommend"):
        await edge.recommend({"user_id": "u-Zebra77", "query": "Zebra77", "explain": True})
        await edge.recommend({"user_id": "u Zebra77"})
        await edge.events({**CLICK, "user_id": "u-Zebra77", "value": "Zebra77"})
        edge.explainer.trouble.error = RuntimeError("Zebra77")
        await edge.recommend({"user_id": "u-Zebra77", "explain": True})
    assert "Zebra77" not in caplog.text


async def test_every_answer_leaves_a_record_without_the_user_where_profiling_was_refused(edge) -> None:
    import pyarrow.parquet as pq

    first = (await edge.recommend({"user_id": "u1", "k": 3})).json()
    await edge.recommend({"user_id": "u1", "k": 3, "profiling": False})
    await edge.records.stop()
    [file] = (edge.folder / "records").rglob("*.parquet")
    rows = pq.ParquetFile(file).read().to_pylist()
    assert [r["owner"] for r in rows] == ["u1", None]
    assert rows[0]["decision_id"] == first["decision_id"]
    assert rows[0]["item_ids"] == [i["item_id"] for i in first["items"]]
    assert len(json.dumps(rows[0])) < 1024


async def test_records_that_do_not_fit_are_dropped_and_counted(tmp_path) -> None:
    from serve.records import ServedRecord, ServedRecords

    dropped = []
    records = ServedRecords(tmp_path, dropped=lambda: dropped.append(1), capacity=2)
    for n in range(5):
        records.put(ServedRecord(f"d{n}", None, "r", 0, [], [], [], []))
    assert len(dropped) == 3
    await records.stop()
    assert len(list(tmp_path.rglob("*.parquet"))) == 1 and not list(tmp_path.rglob("*.part"))


async def test_debug_shows_what_was_considered_and_dropped(edge) -> None:
    answer = (await edge.recommend({"user_id": "u1", "debug": True})).json()
    assert answer["debug"]["considered"] == 40 and answer["debug"]["asked"] == 100
    assert "debug" not in (await edge.recommend({})).json()


async def test_metrics_see_stages_answers_and_reasons(edge) -> None:
    await edge.recommend({"user_id": "u1", "k": 2, "explain": True})
    await edge.recommend({"k": 0})
    assert edge.metrics.answers == [("json", "full")] and edge.metrics.refusals == [422]
    assert [s[:2] for s in edge.metrics.stages] == [("features", "ok"), ("retrieve", "ok"), ("rank", "ok")]
    assert edge.metrics.reason_sources == ["cache", "cache"]


async def test_a_caller_who_leaves_frees_its_place(edge) -> None:
    edge.retriever.trouble.hangs = True
    task = asyncio.create_task(edge.recommend({"deadline_ms": 5000}))
    while not edge.retriever.trouble.calls:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises((asyncio.CancelledError, httpx.HTTPError)):
        await task
    assert edge.edge.in_flight == 0


async def test_loop_lag_sees_a_blocked_loop() -> None:
    import time

    seen: list[float] = []
    task = asyncio.create_task(loop_lag(seen.append, period_s=0.01))
    await asyncio.sleep(0.03)
    time.sleep(0.1)  # noqa: ASYNC251
    await asyncio.sleep(0.03)
    task.cancel()
    assert max(seen) > 0.05 and min(seen) >= 0
