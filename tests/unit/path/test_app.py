"""The Serve application as built from settings, and the routes around it. Nothing is started here."""

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import httpx
import numpy as np
import pytest

from models.artifacts import ArtifactError
from models.store.memory import MemoryStore
from models.text_space import EncoderPlace
from serve.clients import FeatureFetcherClient, QueryEncoderClient, RankerClient, RetrieverClient
from serve.deployments.replica import (
    ReplicaConfig,
    api_keys,
    check_packages,
    open_encoders,
    open_store,
    signing_key,
    warm_edge,
    warm_ingress,
    warm_ranking,
    warm_retrieval,
)
from serve.errors import ConfigError
from serve.ranking import ModelRanker
from serve.settings import DeploymentSettings, ServeSettings
from serve.stages import EngineRetriever, ReleaseQueryEncoder, StoreFeatureFetcher
from serve.wiring import Stages

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own
    from serve.app import build
    from serve.deployments.ingress import app

ARGS = {
    "artifacts_url": "memory://x",
    "artifact_cache": "cache",
    "records_folder": "records",
    "events_folder": "events",
    "encoder_folder": "encoder",
    "model_cache": "models",
    "generator_folder": "generator",
}


def names(application) -> set[str]:
    found = set()
    stack = [application]
    while stack:
        one = stack.pop()
        found.add(one._bound_deployment.name)
        for argument in one._bound_deployment.init_args:
            stack += [argument] if hasattr(argument, "_bound_deployment") else []
            stages = [getattr(argument, f.name) for f in fields(argument)] if isinstance(argument, Stages) else []
            stack += [s for s in stages if hasattr(s, "_bound_deployment")]
    return found


def test_every_stage_is_a_deployment_by_default() -> None:
    assert names(build(ARGS)) == {
        "Ingress",
        "FeatureFetcher",
        "QueryEncoder",
        "Retriever",
        "Ranker",
        "Explainer",
        "Consumer",
    }


def test_the_consumer_is_left_out_where_it_is_not_enabled_and_needs_a_folder_where_it_is() -> None:
    assert "Consumer" not in names(build({**ARGS, "serve": {"consumer": {"enabled": False}}}))
    with pytest.raises(ValueError, match="events_folder"):
        build({**ARGS, "events_folder": ""})


def test_inline_stages_are_no_deployments() -> None:
    inline = {n: {"placement": "inline"} for n in ("features", "encoder", "retriever", "ranker")}
    assert names(build({**ARGS, "serve": inline})) == {"Ingress", "Explainer", "Consumer"}


def test_the_vector_index_is_spread_over_as_many_deployments_as_settings_say() -> None:
    made = names(build({**ARGS, "serve": {"index_shards": {"hosts": 3}}}))
    assert {n for n in made if n.startswith("IndexShard")} == {"IndexShard0", "IndexShard1", "IndexShard2"}


def test_every_default_of_serve_that_could_hurt_is_overridden() -> None:
    of = DeploymentSettings(min_replicas=2, max_replicas=3, num_cpus=0.5, max_queued_requests=7)
    from serve.app import deployment
    from serve.deployments.stages import RankerDeployment

    made = deployment(RankerDeployment, of)
    config = made._deployment_config
    assert made.name == "Ranker" and made.ray_actor_options["num_cpus"] == 0.5
    assert (config.max_ongoing_requests, config.max_queued_requests) == (64, 7)
    assert config.autoscaling_config.min_replicas == 2 and config.autoscaling_config.max_replicas == 3
    assert config.health_check_period_s <= 2 and config.health_check_timeout_s <= 5
    assert config.graceful_shutdown_timeout_s <= 5


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="typo"):
        build({**ARGS, "typo": 1})


def _stages(settings: ServeSettings, **handles) -> Stages:
    return Stages(settings, explainer=_Handle(), **handles)


class _Handle:
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def options(self, **_):
        return self


def test_an_ingress_uses_clients_for_deployments_and_classes_for_inline_stages(tiny) -> None:
    with ThreadPoolExecutor(1) as pool:
        inline = _stages(ServeSettings()).ports(tiny.bundle_of, MemoryStore(), pool)
        remote = _stages(
            ServeSettings(), features=_Handle(), encoder=_Handle(), retriever=_Handle(), ranker=_Handle()
        ).ports(tiny.bundle_of, MemoryStore(), pool)
    kinds = [type(getattr(inline, n)) for n in ("fetcher", "encoder", "retriever", "ranker")]
    assert kinds == [StoreFeatureFetcher, ReleaseQueryEncoder, EngineRetriever, ModelRanker]
    kinds = [type(getattr(remote, n)) for n in ("fetcher", "encoder", "retriever", "ranker")]
    assert kinds == [FeatureFetcherClient, QueryEncoderClient, RetrieverClient, RankerClient]


def _config(**changes) -> ReplicaConfig:
    from pathlib import Path

    import models
    from models.retrieval.settings import RetrievalSettings

    root = str(Path(models.__file__ or "").resolve().parents[1])
    fields = {"artifacts_url": "memory://x", "artifact_cache": "c", "records_folder": "r", "package_root": root}
    return ReplicaConfig(**{"settings": ServeSettings(), "retrieval": RetrievalSettings(), **fields, **changes})


def test_what_replicas_are_bound_with_travels_and_holds_no_secret() -> None:
    config = _config()
    assert pickle.loads(pickle.dumps(config)) == config
    assert not [n for n in vars(config) if "key" in n or "password" in n or ("url" in n and n != "artifacts_url")]


def test_a_replica_that_would_run_somebody_else_s_packages_refuses(tmp_path) -> None:
    check_packages(_config())
    with pytest.raises(ImportError, match=str(tmp_path)):
        check_packages(_config(package_root=str(tmp_path)))


def test_secrets_come_from_the_environment_and_what_is_missing_is_named(monkeypatch) -> None:
    for name in ("RAYCOMMEND_STORE_URL", "RAYCOMMEND_SIGNING_KEY", "RAYCOMMEND_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="RAYCOMMEND_STORE_URL"):
        open_store(_config())
    with pytest.raises(ConfigError, match="RAYCOMMEND_SIGNING_KEY"):
        signing_key()
    assert api_keys().tenants == ("main",)
    monkeypatch.setenv("RAYCOMMEND_SIGNING_KEY", "short-Zebra77")
    with pytest.raises(ConfigError) as refused:
        signing_key()
    assert "Zebra77" not in str(refused.value)
    monkeypatch.setenv("RAYCOMMEND_SIGNING_KEY", "k" * 16)
    monkeypatch.setenv("RAYCOMMEND_API_KEYS", "shop=0123456789abcdef")
    assert signing_key() == b"k" * 16 and api_keys().tenants == ("shop",)


def test_warming_touches_what_each_kind_of_replica_needs(tiny) -> None:
    from dataclasses import replace

    for warm, parts in (
        (warm_retrieval, {"engine"}),
        (warm_edge, {"behaviour", "statistics", "masks"}),
        (warm_ranking, {"ranker"}),
    ):
        bundle = replace(tiny.bundle)
        warm(bundle)
        assert parts <= set(vars(bundle))


def test_an_ingress_warms_the_stages_inside_of_it(tiny) -> None:
    from dataclasses import replace
    from types import SimpleNamespace

    apart, inside = replace(tiny.bundle), replace(tiny.bundle)
    warm_ingress(SimpleNamespace(retriever=object(), ranker=object(), encoder=object()))(apart)
    assert not {"engine", "ranker"} & set(vars(apart))
    with pytest.raises(ArtifactError, match="by which encoder"):
        warm_ingress(SimpleNamespace(retriever=None, ranker=None, encoder=None))(inside)
    assert {"engine", "ranker"} <= set(vars(inside))


def test_a_replica_that_embeds_needs_to_be_told_where_encoders_are(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nothing says where encoders are"):
        open_encoders(_config())
    assert len(open_encoders(_config(encoders=EncoderPlace("hash", tmp_path, tmp_path)))) == 0


def test_a_release_whose_ranker_gives_no_numbers_is_refused_by_those_who_load_it(tiny) -> None:
    from dataclasses import replace

    class Broken:
        def score(self, query, candidates):
            return np.full(len(candidates), np.nan, np.float32)

    bundle = replace(tiny.bundle)
    vars(bundle)["ranker"] = Broken()
    with pytest.raises(ArtifactError, match=f"{bundle.release_id}: its ranker gives scores that are not numbers"):
        warm_ranking(bundle)


def test_the_real_metrics_take_every_observation_without_a_cluster() -> None:
    from serve.metrics import ServeMetrics

    metrics = ServeMetrics()
    for outcome in ("ok", "timeout", "unavailable", "skipped"):
        metrics.stage("rank", outcome, 0.0)
    metrics.answer("json", "full", 12.5)
    metrics.degraded("rank_timeout")
    metrics.refused(422)
    metrics.event("accepted", 3)
    metrics.reason("llm")
    metrics.reason_cache("shared", 3)
    metrics.record_dropped()
    metrics.loop_lag(0.0)
    metrics.in_flight(0)


@pytest.fixture
async def http():
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere/Zebra77", 404),
        ("GET", "/v1/recommend", 405),
        ("DELETE", "/v1/events", 405),
        ("GET", "//", 404),
    ],
)
async def test_unknown_routes_and_methods_get_a_problem_document_too(http, method, path, status) -> None:
    response = await http.request(method, path)
    assert response.status_code == status and response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status and body["request_id"] == response.headers["x-request-id"] != ""
    assert "Zebra77" not in response.text
    assert status != 405 or response.headers["allow"] == "POST"


async def test_the_openapi_document_describes_bodies_answers_and_problems(http) -> None:
    document = (await http.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    assert {"RecommendRequest", "RecommendAnswer", "EventIn", "EventsAnswer", "Problem", "FilterSpec"} <= set(schemas)
    post = document["paths"]["/v1/recommend"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/RecommendRequest"
    }
    assert {"200", "400", "401", "413", "422", "503"} <= set(post["responses"])
    assert schemas["RecommendRequest"]["additionalProperties"] is False

    for path, answer in (("/v1/items/{item_id}/similar", "SimilarAnswer"), ("/v1/items:popular", "ListAnswer")):
        get = document["paths"][path]["get"]
        assert get["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{answer}")
        assert {"401", "404", "422", "503"} <= set(get["responses"])
        assert ("item_id" in path) == ("item_id" in [p["name"] for p in get["parameters"] if p["in"] == "path"])
    assert {"/v1/items:trending", "/v1/users:link", "/v1/users:profile"} <= set(document["paths"])
    assert {"LinkRequest", "LinkAnswer", "ProfileRequest", "ProfileAnswer", "UserIn", "DeclareAnswer"} <= set(schemas)

    def refs(node):
        if isinstance(node, dict):
            yield from [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            for value in node.values():
                yield from refs(value)
        elif isinstance(node, list):
            for value in node:
                yield from refs(value)

    assert {r.rsplit("/", 1)[1] for r in refs(document)} <= set(schemas)
    assert (await http.get("/docs")).status_code == 200
