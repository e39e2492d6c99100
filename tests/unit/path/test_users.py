"""Users by body: merging a session, reading what is stored, and their bad-input table."""

import json
import time

import pytest

from models.store.port import StoreTimeout, StoreUnavailable

LINK, PROFILE = "/v1/users:link", "/v1/users:profile"
SECRET = "Zebra77Secret"


def of_session(number: int, item: str, session: str = "s1") -> dict:
    return {"event_id": f"s{number}", "session_id": session, "item_id": item, "type": "click"}


def of_user(number: int, item: str) -> dict:
    return {"event_id": f"u{number}", "user_id": "u1", "item_id": item, "type": "like"}


async def link(edge, user: str = "u1", session: str = "s1"):
    return await edge.post(LINK, {"user_id": user, "session_id": session})


async def test_what_a_session_took_is_not_recommended_to_the_user_it_was_linked_to(edge) -> None:
    await edge.events([of_session(1, "i05"), of_session(2, "i06"), of_user(3, "i07")])
    response = await link(edge)
    assert response.status_code == 200
    assert response.json() == {
        "request_id": response.headers["x-request-id"],
        "session_known": True,
        "events": 2,
    }
    answer = (await edge.recommend({"user_id": "u1", "k": 40})).json()
    assert {f"i{n:02}" for n in range(40)} - {i["item_id"] for i in answer["items"]} == {"i05", "i06", "i07"}
    assert not (await edge.post(PROFILE, {"session_id": "s1"})).json()["known"]


async def test_linking_again_and_linking_a_stranger_are_harmless(edge) -> None:
    await edge.events([of_session(1, "i05")])
    await link(edge)
    for session in ("s1", "nobody"):
        answer = (await link(edge, session=session)).json()
        assert (answer["session_known"], answer["events"]) == (False, 0)
    assert len((await edge.post(PROFILE, {"user_id": "u1"})).json()["events"]) == 1


async def test_a_profile_shows_events_newest_first_with_titles_and_a_summary(edge) -> None:
    now = time.time_ns() // 1_000_000
    events = [of_user(1, "i05"), of_user(2, "i06"), {**of_user(3, "elsewhere"), "type": "view"}]
    await edge.events([{**e, "timestamp_ms": now - 1000 * (3 - n)} for n, e in enumerate(events)])
    answer = (await edge.post(PROFILE, {"user_id": "u1"})).json()
    assert answer["known"] and answer["seen_items"] == 3 and answer["release"] == edge.tiny.release.release_id
    assert [(e["item_id"], e["title"], e["type"]) for e in answer["events"]] == [
        ("elsewhere", None, "view"),
        ("i06", "Film 6 thriller", "like"),
        ("i05", "Film 5 comedy", "like"),
    ]
    assert answer["events"][1]["timestamp_ms"] == now - 2000 and answer["events"][1]["value"] == 1.0
    assert answer["summary"] == "Liked: Film 6 thriller; Film 5 comedy."


async def test_a_stranger_s_profile_is_empty_and_no_error(edge) -> None:
    for who in ({"user_id": "nobody"}, {"session_id": "nobody"}):
        answer = (await edge.post(PROFILE, who)).json()
        assert (answer["known"], answer["events"], answer["seen_items"], answer["summary"]) == (False, [], 0, "")


REFUSED = {
    "no session": (LINK, {"user_id": "u1"}),
    "no user": (LINK, {"session_id": "s1"}),
    "null": (LINK, None),
    "a list": (LINK, [{"user_id": "u1", "session_id": "s1"}]),
    "the same id twice": (LINK, {"user_id": SECRET, "session_id": SECRET}),
    "a session as user": (LINK, {"user_id": "~s:" + SECRET, "session_id": "s1"}),
    "an empty session": (LINK, {"user_id": "u1", "session_id": ""}),
    "a session id that is none": (LINK, {"user_id": "u1", "session_id": SECRET + "\u0000"}),
    "a user id of 1 MB": (LINK, {"user_id": SECRET * 80_000, "session_id": "s1"}),
    "a number": (LINK, {"user_id": 7, "session_id": "s1"}),
    "an unknown field": (LINK, {"user_id": "u1", "session_id": "s1", SECRET + " x": 1}),
    "nobody": (PROFILE, {}),
    "both": (PROFILE, {"user_id": "u1", "session_id": "s1"}),
    "the session of somebody as user": (PROFILE, {"user_id": "~s:" + SECRET}),
    "an id that is none": (PROFILE, {"user_id": SECRET + "/.."}),
}


@pytest.mark.parametrize(("path", "body"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_body_is_a_422_that_repeats_nothing_and_changes_nothing(edge, path: str, body) -> None:
    await edge.events([of_session(1, "i05")])
    response = await edge.post(path, json.dumps(body).encode())
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert SECRET not in response.text and len(response.text) < 3000
    assert list(edge.store._tenants["main"].profiles) == ["~s:s1"]


@pytest.mark.parametrize("path", [LINK, PROFILE])
async def test_what_is_not_json_is_a_400(edge, path: str) -> None:
    assert (await edge.post(path, b"{")).status_code == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/recommend", {"user_id": "~s:s1"}),
        ("/v1/events", {**of_user(1, "i05"), "user_id": "~s:s1"}),
        (LINK, {"user_id": "~s:s1", "session_id": "s2"}),
        (PROFILE, {"user_id": "~s:s1"}),
    ],
)
async def test_nobody_reads_or_writes_a_session_by_calling_it_a_user(edge, path: str, body) -> None:
    await edge.events([of_session(1, "i05")])
    response = await edge.post(path, body)
    assert response.status_code == 422 and "marks sessions" in response.json()["detail"]
    assert len(edge.store._tenants["main"].profiles["~s:s1"].ring) == 1
    # A session may be called anything: its key has one prefix more.
    assert (await edge.events({**of_session(2, "i05"), "session_id": "~s:s1"})).json()["results"][0][
        "status"
    ] == "accepted"
    assert len(edge.store._tenants["main"].profiles["~s:s1"].ring) == 1


@pytest.mark.parametrize("error", [StoreUnavailable("away at 10.0.0.7"), StoreTimeout("late")])
async def test_while_the_store_is_away_both_are_a_503_with_retry_after(edge, error) -> None:
    edge.store_error = error
    for response in (await link(edge), await edge.post(PROFILE, {"user_id": "u1"})):
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert "10.0.0.7" not in response.text and response.headers["content-type"] == "application/problem+json"


async def test_users_of_one_tenant_are_strangers_in_another(make_edge) -> None:
    edge = await make_edge(keys="main=main-key-0123456789,shop=shop-key-0123456789")
    main, shop = {"x_api_key": "main-key-0123456789"}, {"x_api_key": "shop-key-0123456789"}
    await edge.events([of_session(1, "i05")], **main)
    ids = {"user_id": "u1", "session_id": "s1"}
    assert (await edge.post(LINK, ids)).status_code == 401
    assert (await edge.post(LINK, ids, **shop)).json()["session_known"] is False
    assert (await edge.post(LINK, ids, **main)).json()["session_known"] is True
    assert (await edge.post(PROFILE, {"user_id": "u1"}, **shop)).json()["known"] is False


async def test_ids_of_users_never_reach_the_log(edge, caplog) -> None:
    import logging

    with caplog.at_level(logging.DEBUG, logger="raycommend"):
        await link(edge, user="u-Zebra77", session="s-Zebra77")
        edge.store_error = StoreUnavailable("away")
        await link(edge, user="u-Zebra77", session="s-Zebra77")
        await edge.post(PROFILE, {"user_id": "u-Zebra77"})
    assert "Zebra77" not in caplog.text
