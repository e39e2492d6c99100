"""Lists without a user: similar, bought together, popular and trending, and their bad-input table."""

from dataclasses import replace

import numpy as np
import pytest

from models.behaviour.rules import Rules
from models.candidates import Source
from serve.errors import DependencyError
from serve.stages import EngineRetriever

SIMILAR, POPULAR, TRENDING = "/v1/items/i05/similar", "/v1/items:popular", "/v1/items:trending"
LISTS = (SIMILAR, POPULAR, TRENDING)
SECRET = "Zebra77Secret"


@pytest.fixture
async def engine_edge(make_edge):
    """An edge whose lists ask the real retrieval engine."""
    return await make_edge(prepare=lambda e: setattr(e, "similar", EngineRetriever(e._bundle, e.pool)))


def bundle_of(edge):
    return edge.releases.bundle("main", edge.releases.current("main"))


def give_rules(edge, row: int, *rules: tuple[int, int, float, float]) -> None:
    """Let the loaded release hold these rules (consequent, support, confidence, lift) of one item."""
    bundle = bundle_of(edge)
    offsets = np.zeros(len(bundle.catalog) + 1, np.int64)
    offsets[row + 1 :] = len(rules)
    columns, support, confidence, lift = (np.array(part) for part in zip(*rules, strict=True))
    held = Rules(
        offsets,
        columns.astype(np.int32),
        support.astype(np.int32),
        confidence.astype(np.float32),
        lift.astype(np.float32),
    )
    bundle.__dict__["behaviour"] = replace(bundle.behaviour, rules=held)


async def test_similar_items_resemble_the_item_or_followed_it_and_never_are_it(engine_edge) -> None:
    response = await engine_edge.get(SIMILAR + "?k=12")
    answer = response.json()
    assert response.status_code == 200 and answer["item_id"] == "i05" and answer["degraded"] is False
    assert len(answer["items"]) == 12 and [i["rank"] for i in answer["items"]] == list(range(1, 13))
    assert "i05" not in [i["item_id"] for i in answer["items"]]
    scores = [i["score"] for i in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert {s for i in answer["items"] for s in i["sources"]} <= {"similar", "sequential", "popular"}
    bundle = bundle_of(engine_edge)
    row, others = 5, [bundle.catalog.row(i["item_id"]) for i in answer["items"]]
    alike = bundle.embeddings @ bundle.embeddings[row]
    links = np.sqrt([bundle.behaviour.link(row, other) for other in range(len(bundle.catalog))])
    expected = alike / alike.std() + links / links.std()
    np.testing.assert_allclose(scores, expected[others], rtol=1e-3)
    expected[row] = -np.inf
    assert min(scores) >= np.sort(expected)[-12] - 1e-3
    assert "retrieve;dur=" in response.headers["server-timing"]


async def test_similar_asks_for_one_item_and_no_user(edge) -> None:
    await edge.get(SIMILAR + "?k=3")
    [query] = edge.retriever.queries
    assert (query.n, query.seed_items, query.exclude_items) == (3, ("i05",), ("i05",))
    assert query.about_seeds and not query.personal and not query.user.known


async def test_bought_together_shows_rules_best_first_that_pass_the_filter(edge) -> None:
    give_rules(edge, 5, (7, 9, 0.5, 3.25), (1, 8, 0.4, 2.0), (2, 6, 0.3, 1.5))
    answer = (await edge.get(SIMILAR + "?k=2")).json()
    assert answer["bought_together"] == [
        {"item_id": "i07", "title": "Film 7 western", "support": 9, "confidence": 0.5, "lift": 3.25},
        {"item_id": "i01", "title": "Film 1 comedy", "support": 8, "confidence": 0.4, "lift": 2.0},
    ]
    comedies = (await edge.get(SIMILAR + "?genre=Comedy")).json()
    assert [r["item_id"] for r in comedies["bought_together"]] == ["i01"]
    assert (await edge.get("/v1/items/i06/similar")).json()["bought_together"] == []


async def test_popular_and_trending_follow_the_statistics_of_the_release(edge) -> None:
    bundle = bundle_of(edge)
    for path, counts in ((POPULAR, bundle.statistics.popularity), (TRENDING, bundle.statistics.recent)):
        answer = (await edge.get(path + "?k=15")).json()
        expected = np.argsort(-counts, kind="stable")[:15]
        assert [i["item_id"] for i in answer["items"]] == bundle.catalog.item_ids(expected.astype(np.int32))
        assert [i["score"] for i in answer["items"]] == pytest.approx(counts[expected].tolist(), abs=1e-5)
        assert answer["release"] == edge.tiny.release.release_id and answer["degraded"] is False
    assert edge.metrics.answers == [("popular", "full"), ("trending", "full")]


async def test_a_list_names_nothing_that_nobody_took(edge) -> None:
    bundle = bundle_of(edge)
    counts = np.array(bundle.statistics.popularity)
    counts[3:] = 0.0
    bundle.__dict__["statistics"] = replace(bundle.statistics, popularity=counts)
    answer = (await edge.get(POPULAR)).json()
    assert {i["item_id"] for i in answer["items"]} == {"i00", "i01", "i02"}
    assert answer["degraded_reasons"] == ["fewer_items"]


@pytest.mark.parametrize("path", LISTS)
async def test_attributes_filter_every_list(engine_edge, path: str) -> None:
    catalog = bundle_of(engine_edge).catalog
    answer = (await engine_edge.get(f"{path}?k=40&genre=comedy&genre=Western&year=1951&year=1953&year=1957")).json()
    assert {i["item_id"] for i in answer["items"]} == {"i01", "i03", "i07"}
    assert answer["degraded_reasons"] == ["fewer_items"]
    assert all({"Comedy", "Western"} & set(catalog.labels(catalog.row(i["item_id"]))["genre"]) for i in answer["items"])
    nothing = (await engine_edge.get(f"{path}?genre=Opera")).json()
    assert nothing["items"] == [] and nothing["degraded"]


async def test_while_the_retriever_is_away_popular_items_stand_in_and_the_answer_says_so(edge) -> None:
    edge.retriever.trouble.error = DependencyError("away")
    give_rules(edge, 5, (7, 9, 0.5, 3.25))
    answer = (await edge.get(SIMILAR)).json()
    assert answer["degraded_reasons"] == ["retrieve_unavailable"] and len(answer["items"]) == 10
    assert {s for i in answer["items"] for s in i["sources"]} == {Source.popular.name}
    assert "i05" not in [i["item_id"] for i in answer["items"]] and len(answer["bought_together"]) == 1


REFUSED = {
    "k of 0": "k=0",
    "k above the most": "k=101",
    "k huge": "k=" + "9" * 400,
    "k negative": "k=-1",
    "k a fraction": "k=1.0",
    "k a word": f"k={SECRET}",
    "k empty": "k=",
    "k in other digits": "k=%D9%A5",
    "k twice": "k=1&k=1",
    "an unknown parameter": f"{SECRET}=1",
    "a misspelt parameter": "limit=5",
    "an attribute the catalog does not have": "colour=red",
    "an attribute without a value": "genre=",
    "a value of 10 kB": "genre=" + SECRET * 800,
    "a hundred and one values": "&".join(["genre=Drama"] * 101),
    "a name with a control character": f"gen%00re{SECRET}=1",
    "a name of 10 kB": SECRET * 800 + "=1",
    "seventeen names": "&".join(f"a{n}=1" for n in range(17)),
}


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("parameters", REFUSED.values(), ids=REFUSED.keys())
async def test_a_bad_query_string_is_a_422_that_repeats_nothing(edge, path: str, parameters: str) -> None:
    response = await edge.get(f"{path}?{parameters}")
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["title"] == "Invalid request" and SECRET not in response.text and len(response.text) < 3000
    assert body["request_id"] == response.headers["x-request-id"] != ""
    assert edge.retriever.trouble.calls == 0 and edge.edge.in_flight == 0


async def test_an_unknown_attribute_is_refused_with_the_known_ones_named(edge) -> None:
    detail = (await edge.get(POPULAR + "?genres=Comedy")).json()["detail"]
    assert "genre" in detail and "year" in detail


@pytest.mark.parametrize("item", ["nowhere", "i5", "x" * 128, "main:i05", "~i05"])
async def test_an_unknown_item_is_a_404(edge, item: str) -> None:
    response = await edge.get(f"/v1/items/{item}/similar")
    assert response.status_code == 404 and response.headers["content-type"] == "application/problem+json"
    assert response.json()["title"] == "Not found" and edge.metrics.refusals == [404]


@pytest.mark.parametrize("item", ["x" * 129, "i%2005", "i%0005", "%E2%80%AE", f"{SECRET}%22"])
async def test_an_item_id_that_can_be_none_is_a_422(edge, item: str) -> None:
    response = await edge.get(f"/v1/items/{item}/similar")
    assert response.status_code == 422 and SECRET not in response.text


@pytest.mark.parametrize("path", LISTS)
async def test_lists_need_a_credential_where_keys_are_set_and_hold_its_tenant_s_release(make_edge, path: str) -> None:
    edge = await make_edge(keys="shop=shop-key-0123456789")
    assert (await edge.get(path)).status_code == 401
    assert (await edge.get(path, x_api_key="shop-key-0123456789")).status_code == 200


@pytest.mark.parametrize("path", LISTS)
async def test_above_its_capacity_the_edge_refuses_lists_too(make_edge, path: str) -> None:
    edge = await make_edge(max_in_flight=1)
    edge.edge._in_flight = 1
    response = await edge.get(path)
    assert response.status_code == 503 and response.headers["retry-after"] == "1"


async def test_an_unusable_request_is_answered_the_same_way_twice(engine_edge) -> None:
    first, second = [(await engine_edge.get(SIMILAR + "?k=20")).json()["items"] for _ in range(2)]
    assert first == second
