"""The real routes of the ingress over an edge of this process: every path reaches what it names. Nothing is started."""

import warnings
from types import SimpleNamespace

import httpx
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own
    from serve.deployments.ingress import app


@pytest.fixture
async def http(edge, monkeypatch):
    """A client of the application; only Serve's replica context, which names the replica's object, is faked."""
    monkeypatch.setattr("ray.serve.get_replica_context", lambda: SimpleNamespace(servable_object=replica))
    replica = SimpleNamespace(_edge=edge.edge)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://edge") as client:
        yield client


CLICK = {"event_id": "e1", "session_id": "s1", "item_id": "i05", "type": "click"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/recommend", {"k": 3}, 200, "decision_id"),
        ("POST", "/v1/events", CLICK, 202, "results"),
        ("GET", "/v1/items/i05/similar?k=3", None, 200, "bought_together"),
        ("GET", "/v1/items/a.b:c~d/similar", None, 404, "detail"),
        ("GET", "/v1/items:popular?k=3&genre=Comedy", None, 200, "items"),
        ("GET", "/v1/items:trending?k=3", None, 200, "items"),
        ("GET", "/v1/items:trending?k=none", None, 422, "detail"),
        ("POST", "/v1/users:link", {"user_id": "u1", "session_id": "s1"}, 200, "session_known"),
        ("POST", "/v1/users:profile", {"user_id": "u1"}, 200, "events"),
        ("GET", "/healthz", None, 200, "status"),
        ("GET", "/readyz", None, 200, "ready"),
    ],
)
async def test_every_route_is_answered_by_what_it_names(http, method, path, body, status, said) -> None:
    response = await http.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert said in response.json()


async def test_popular_and_trending_are_not_mixed_up(http, edge) -> None:
    await http.get("/v1/items:popular")
    await http.get("/v1/items:trending")
    assert [route for route, _ in edge.metrics.answers] == ["popular", "trending"]


@pytest.mark.parametrize("path", ["/v1/items:popular", "/v1/users:link", "/v1/items/i05/similar"])
async def test_the_wrong_method_is_a_405_that_names_the_right_one(http, path) -> None:
    response = await http.delete(path)
    assert response.status_code == 405 and response.headers["allow"] in ("GET", "POST")
    assert response.headers["content-type"] == "application/problem+json"


async def test_answers_are_what_the_openapi_document_says(http, edge) -> None:
    from serve.schemas import ListAnswer, SimilarAnswer
    from serve.user_schemas import DeclareAnswer, LinkAnswer, ProfileAnswer

    await edge.events({**CLICK, "user_id": "u1"})
    answers = {
        SimilarAnswer: await http.get("/v1/items/i05/similar"),
        ListAnswer: await http.get("/v1/items:popular"),
        DeclareAnswer: await http.put("/v1/users", json={"user_id": "u1", "attributes": {"genre": "comedy"}}),
        LinkAnswer: await http.post("/v1/users:link", json={"user_id": "u1", "session_id": "s1"}),
        ProfileAnswer: await http.post("/v1/users:profile", json={"user_id": "u1"}),
    }
    for model, response in answers.items():
        assert set(response.json()) == set(model.model_fields)
        model.model_validate(response.json())
