"""The bad-input table of `POST /v1/events`: the good events of a list land, and nothing of a bad one is repeated."""

import time

import pytest

from models.store.port import StoreTimeout, StoreUnavailable

SECRET = "Zebra77Secret"
CLICK = {"event_id": "e1", "user_id": "u1", "item_id": "i01", "type": "click"}

BAD_EVENTS = {
    "an empty list": [],
    "501 events": [{**CLICK, "event_id": f"e{n}"} for n in range(501)],
    "a string": SECRET,
    "null": None,
    "an empty object": {},
    "no user": {k: v for k, v in CLICK.items() if k != "user_id"},
    "no event id": {k: v for k, v in CLICK.items() if k != "event_id"},
    "no item": {k: v for k, v in CLICK.items() if k != "item_id"},
    "an unknown type": {**CLICK, "type": SECRET},
    "a search without query": {"event_id": "e1", "user_id": "u1", "type": "search"},
    "a search with an item": {**CLICK, "type": "search", "query": SECRET},
    "a click with a query": {**CLICK, "query": SECRET},
    "an unknown field that is no name": {**CLICK, SECRET + " x": 1},
    "a control character in the user": {**CLICK, "user_id": SECRET + "\u0000"},
    "an id of 1 MB": {**CLICK, "item_id": SECRET * 80_000},
    "a session as user": {**CLICK, "user_id": "~s:" + SECRET},
    "a time that is text": {**CLICK, "timestamp_ms": SECRET},
    "a value that is text": {**CLICK, "value": SECRET},
    "a value that overflows": {**CLICK, "value": 1e200},
}


@pytest.mark.parametrize("body", BAD_EVENTS.values(), ids=BAD_EVENTS.keys())
async def test_events_that_the_contract_refuses_are_a_422_and_leave_no_trace(edge, body, problem) -> None:
    problem(await edge.events(body), 422)
    assert edge.store._tenants["main"].profiles == {}


async def test_one_bad_event_of_five_hundred_does_not_stop_the_good_ones(edge) -> None:
    events = [{**CLICK, "event_id": f"e{n}", "item_id": f"i{n % 40:02}"} for n in range(500)]
    events[250] = {**events[250], "type": SECRET}
    response = await edge.events(events)
    assert response.status_code == 202 and SECRET not in response.text
    results = response.json()["results"]
    assert [r["status"] for r in results].count("accepted") == 499
    assert results[250]["status"] == "invalid" and "type" in results[250]["reason"]
    assert [r["event_id"] for r in results] == [f"e{n}" for n in range(500)]
    assert edge.metrics.events == {"accepted": 499}


@pytest.mark.parametrize(
    "one",
    [SECRET, 7, None, [], {SECRET + "-": SECRET}, {"event_id": SECRET + "\u0000"}, {"event_id": {"a": SECRET}}, {}],
    ids=repr,
)
async def test_nothing_of_an_invalid_event_is_repeated(edge, one) -> None:
    response = await edge.events([one, CLICK])
    assert response.status_code == 202 and SECRET not in response.text
    assert [r["status"] for r in response.json()["results"]] == ["invalid", "accepted"]


async def test_events_of_the_future_and_of_1970_are_invalid_and_say_why(edge) -> None:
    now = time.time_ns() // 1_000_000
    events = [
        {**CLICK, "event_id": "future", "timestamp_ms": now + 3_600_000},
        {**CLICK, "event_id": "past", "timestamp_ms": 0},
        {**CLICK, "event_id": "huge", "timestamp_ms": 2**63},
        {**CLICK, "event_id": "soon", "timestamp_ms": now + 60_000},
        {**CLICK, "event_id": "now", "timestamp_ms": now},
        {**CLICK, "event_id": "unsaid"},
    ]
    results = (await edge.events(events)).json()["results"]
    assert [r["status"] for r in results] == ["invalid"] * 3 + ["accepted"] * 3
    assert all("timestamp_ms" in r["reason"] for r in results[:3])


async def test_an_impression_needs_its_token_and_a_forged_one_is_invalid(edge) -> None:
    answer = (await edge.recommend({"user_id": "u1", "k": 1})).json()
    item = answer["items"][0]
    shown = {
        "event_id": "e1", "user_id": "u1", "item_id": item["item_id"], "type": "impression",
        "decision_id": answer["decision_id"], "impression": item["impression"],
    }  # fmt: skip
    events = [
        shown,
        {**shown, "event_id": "e2", "user_id": "u2"},
        {**shown, "event_id": "e3", "item_id": "i39" if item["item_id"] != "i39" else "i38"},
        {**shown, "event_id": "e4", "decision_id": "other"},
        {**shown, "event_id": "e5", "impression": SECRET},
        {**shown, "event_id": "e6", "impression": None},
        {**shown, "event_id": "e7", "type": "click"},
    ]
    response = await edge.events(events)
    assert SECRET not in response.text
    statuses = [r["status"] for r in response.json()["results"]]
    assert statuses == ["accepted", "invalid", "invalid", "invalid", "invalid", "ignored", "accepted"]


@pytest.mark.parametrize("error", [StoreUnavailable("away at 10.0.0.7"), StoreTimeout("late")])
async def test_while_the_store_is_away_events_are_a_503_with_retry_after_and_never_a_202(edge, error, problem) -> None:
    edge.store_error = error
    for body in (CLICK, [CLICK], [CLICK, {"event_id": "bad"}]):
        response = await edge.events(body)
        problem(response, 503)
        assert int(response.headers["retry-after"]) >= 1 and "10.0.0.7" not in response.text
    assert (await edge.http.get("/readyz")).status_code == 503
    edge.store_error = None
    assert (await edge.events(CLICK)).json()["results"][0]["status"] == "accepted"


async def test_events_that_were_only_partly_stored_are_a_503_and_sending_them_again_is_harmless(
    make_edge, problem
) -> None:
    from serve.fakes import FakeEventSink

    sink = FakeEventSink(fails=frozenset({"e2"}))
    edge = await make_edge(prepare=lambda e: setattr(e, "sink", sink))
    events = [CLICK, {**CLICK, "event_id": "e2"}]
    response = await edge.events(events)
    problem(response, 503)
    assert response.headers["retry-after"]
    sink._fails = frozenset()
    statuses = [r["status"] for r in (await edge.events(events)).json()["results"]]
    assert statuses == ["duplicate", "accepted"]
