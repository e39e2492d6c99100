"""The bad-input table of the API: each wrong request gets the answer the contract promises, and nothing leaks."""

import json
import time

import pytest

from models.store.port import StoreUnavailable

SECRET = "Zebra77Secret"
CLICK = {"event_id": "e1", "user_id": "u1", "item_id": "i01", "type": "click"}


def nested(depth: int) -> bytes:
    return b'{"context": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}"


MALFORMED = {
    "empty body": b"",
    "a word": SECRET.encode(),
    "cut off": b'{"user_id": "u1"',
    "single quotes": b"{'k': 1}",
    "trailing comma": b'{"k": 1,}',
    "two documents": b"{}{}",
    "not UTF-8": b'{"user_id": "\xff\xfe"}',
    "a lone surrogate": b'{"query": "\\ud800"}',
    "nested ten thousand deep": nested(10_000),
    "nested arrays": b"[" * 100_000,
    "a raw control character": b'{"user_id": "a\x01b"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_not_json_is_a_400(edge, body: bytes, problem) -> None:
    assert problem(await edge.recommend(body), 400)["title"] == "Bad request"
    problem(await edge.events(body), 400)


REFUSED = {
    "a list": [],
    "a number": 7,
    "null": None,
    "an unknown field that is no name": {SECRET + "@example.org": 1},
    "an unknown field of 1 kB": {SECRET * 80: 1},
    "an unknown field with a control character": {"a\u0000" + SECRET: 1},
    "k of 0": {"k": 0},
    "k negative": {"k": -5},
    "k huge": {"k": 10**30},
    "k a string": {"k": SECRET},
    "k a float": {"k": 2.5},
    "k null": {"k": None},
    "an id of 1 MB": {"user_id": SECRET * 80_000},
    "an empty id": {"user_id": ""},
    "a control character in an id": {"user_id": SECRET + "\u0000"},
    "a session as user": {"user_id": "~s:" + SECRET},
    "a newline in an id": {"user_id": SECRET + "\n"},
    "an escape sequence in an id": {"session_id": "\u001b[31m" + SECRET},
    "a unicode id": {"user_id": "user-ü" + SECRET},
    "a path as id": {"user_id": "../../" + SECRET},
    "a bad id in candidates": {"candidates": ["i01", SECRET + " "]},
    "a bad id in seed_items": {"seed_items": [SECRET + "/"]},
    "a bad id in exclude_items": {"exclude_items": [SECRET + "*"]},
    "too many candidates": {"candidates": ["i01"] * 1001},
    "no candidates": {"candidates": []},
    "language nonsense": {"language": f"{SECRET} please"},
    "a language of control characters": {"language": "\u0007\u0007"},
    "a language of 10 kB": {"language": "en-" * 3000},
    "a query of 1 MB": {"query": SECRET * 80_000},
    "an empty query": {"query": ""},
    "a cursor that is no token": {"cursor": SECRET + "!"},
    "a forged cursor": {"cursor": SECRET * 5},
    "a negative deadline": {"deadline_ms": -1},
    "diversity above 1": {"diversity": 1.5},
    "filters that say nothing": {"filters": {"genre": {}}},
    "a filter key with a control character": {"filters": {"a\n" + SECRET: {"gte": 1}}},
    "a filter on a huge integer": {"filters": {"year": {"gte": 10**400}}},
    "a filter on a string": {"filters": {"year": {"gte": SECRET}}},
    "explain a string": {"explain": "yes"},
    "nested context": {"context": {"a": {"b": SECRET}}},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_what_the_contract_refuses_is_a_422_that_names_the_field_only(edge, body, accept: str, problem) -> None:
    content = json.dumps(body).encode()
    assert problem(await edge.recommend(content, accept=accept), 422)["title"] == "Invalid request"
    assert edge.retriever.trouble.calls == 0
    assert edge.edge.in_flight == 0


async def test_an_unknown_field_is_named_since_that_is_the_fix(edge, problem) -> None:
    assert "max_items" in problem(await edge.recommend({"max_items": 3}), 422)["detail"]
    assert "useer_id" in problem(await edge.events({**CLICK, "useer_id": "u1"}), 422)["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_are_refused(edge, number: str, problem) -> None:
    response = await edge.recommend(b'{"diversity": %s}' % number.encode())
    assert response.status_code in (400, 422)
    problem(response, response.status_code)
    event = json.dumps({**CLICK, "value": "@"}).replace('"@"', number).encode()
    response = await edge.events(event)
    assert response.status_code in (400, 422)
    assert len(edge.store._tenants["main"].profiles) == 0


ANSWERED = {
    "an empty object": {},
    "an unknown user": {"user_id": "nobody-has-this-id"},
    "an unknown session": {"session_id": "nobody"},
    "unknown candidates": {"user_id": "u1", "candidates": ["nowhere"]},
    "unknown seed items": {"seed_items": ["nowhere"]},
    "unknown excluded items": {"exclude_items": ["nowhere"]},
    "k larger than the catalog": {"k": 100},
    "everything filtered out": {"filters": {"genre": {"any_of": ["Opera"]}}},
    "an unknown attribute": {"filters": {"nope": {"any_of": ["x"]}}},
    "a language we do not write": {"language": "xx", "explain": True},
    "a deadline too short": {"deadline_ms": 1},
    "a query of control characters": {"query": "\u0000\u0007\u001b[31m \u202e"},
    "a query of quotes and tags": {"query": "\"'</script>{{7*7}}; DROP TABLE"},
    "a query of one emoji": {"query": "🎬"},
    "a filter value of control characters": {"filters": {"genre": {"none_of": ["\u0000"]}}},
    "the longest lists": {"exclude_items": [f"x{n}" for n in range(1000)], "seed_items": ["i01"] * 50},
}


@pytest.mark.parametrize("body", ANSWERED.values(), ids=ANSWERED.keys())
async def test_what_is_odd_but_allowed_is_a_200_that_says_what_it_lacks(edge, body) -> None:
    response = await edge.recommend(body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["degraded"] == bool(answer["degraded_reasons"])
    assert answer["degraded"] or len(answer["items"]) == body.get("k", 10)


async def test_a_language_we_do_not_write_is_answered_in_english_and_flagged(edge) -> None:
    answer = (await edge.recommend({"language": "xx", "explain": True})).json()
    assert answer["degraded_reasons"] == ["language_unsupported"]
    assert edge.explainer.tasks[0].language == "en"


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "", "\x7f"])
async def test_the_body_decides_and_not_its_content_type(edge, kind: str, problem) -> None:
    assert (await edge.recommend({"k": 1}, content_type=kind)).status_code == 200
    problem(await edge.recommend(b"<k>1</k>", content_type=kind), 400)


async def test_a_body_over_the_limit_is_a_413(make_edge, problem) -> None:
    edge = await make_edge(max_body_bytes=10_000)
    problem(await edge.recommend(b" " * 10_001), 413)
    problem(await edge.events(b" " * 20_000), 413)


@pytest.mark.parametrize("length", ["0", "-1", "abc", "²", "9" * 5000])
async def test_a_body_longer_than_it_claims_is_cut_off_all_the_same(make_edge, length: str, problem) -> None:
    edge = await make_edge(max_body_bytes=10_000)
    claim = [(b"content-length", length.encode("latin-1"))]

    async def body():
        for _ in range(100):
            yield b" " * 1000

    response = await edge.http.post("/v1/recommend", content=body(), headers=claim)
    problem(response, 413)


async def test_a_body_that_never_arrives_is_not_an_error_of_ours(edge) -> None:
    from starlette.requests import Request

    async def gone():
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "POST", "path": "/v1/recommend", "headers": [], "query_string": b""}
    response = await edge.edge.recommend(Request(scope, gone))
    assert response.status_code == 499 and edge.edge.in_flight == 0


async def test_an_expired_cursor_is_a_422_that_says_what_to_do(edge, problem) -> None:
    import numpy as np

    token = edge.signer.cursor("main", "u1", np.empty(0, np.uint64), now_s=int(time.time()) - 700)
    body = problem(await edge.recommend({"user_id": "u1", "cursor": token}), 422)
    assert "expired" in body["detail"] and "without" in body["detail"]


async def test_a_cursor_of_somebody_else_is_a_422(edge, problem) -> None:
    token = (await edge.recommend({"user_id": "u1", "k": 3})).json()["next_cursor"]
    assert (await edge.recommend({"user_id": "u1", "k": 3, "cursor": token})).status_code == 200
    for who in ({"user_id": "u2"}, {"session_id": "s1"}, {}):
        problem(await edge.recommend({**who, "cursor": token}), 422)


async def test_an_empty_catalog_is_a_200(make_edge, empty_release) -> None:
    edge = await make_edge(release=empty_release)
    for body in ({}, {"user_id": "u1", "query": "water", "explain": True}, {"candidates": ["i01"]}):
        answer = (await edge.recommend(body)).json()
        assert answer["items"] == [] and answer["next_cursor"] is None
        assert set(answer["degraded_reasons"]) == {"empty_catalog", "fewer_items"}
    assert [name for name, _ in await edge.stream({"explain": True})] == ["items", "done"]


@pytest.fixture
def empty_release(tiny, tmp_path):
    """A release with a catalog of no items."""
    from dataclasses import replace

    import numpy as np

    from models.bundle import EMBEDDINGS_FILE
    from models.catalog import CATALOG_FILE, write_catalog

    catalog, embeddings = tmp_path / "c", tmp_path / "e"
    catalog.mkdir()
    embeddings.mkdir()
    write_catalog([], catalog / CATALOG_FILE)
    np.save(embeddings / EMBEDDINGS_FILE, np.empty((0, 32), np.float32))
    refs = {
        **tiny.release.artifacts,
        "catalog": tiny.artifacts.put("catalog", catalog, {}),
        "embeddings": tiny.artifacts.put("embeddings", embeddings, {}),
    }
    return replace(tiny, release=replace(tiny.release, artifacts=refs))


async def test_while_the_store_is_away_recommendations_are_a_200_from_what_is_known(edge) -> None:
    edge.store_error = StoreUnavailable("away")
    answer = (await edge.recommend({"user_id": "u1"})).json()
    assert answer["degraded_reasons"] == ["features_unavailable"] and len(answer["items"]) == 10
    assert answer["degradation"] == {"planned": "full", "actual": "stale_profile"}
