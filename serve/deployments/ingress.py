"""The Ingress deployment: stage 1. Routes only; the edge and the services do the work."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from ray import serve as ray_serve
from starlette.exceptions import HTTPException

from models.store.profiles import ProfileStore
from serve.deployments.openapi import body_of, describe, item_body
from serve.deployments.replica import (
    ReplicaConfig,
    api_keys,
    check_packages,
    executor,
    follow_releases,
    follow_statistics,
    open_cache,
    open_decisions,
    open_items,
    open_reasons,
    open_store,
    open_summaries,
    signing_key,
    warm_ingress,
)
from serve.http import HttpEdge, loop_lag, problem, request_id_of
from serve.ingest import EventService
from serve.items import ItemService
from serve.later import LaterReasons, ReasonsAnswer
from serve.lists import ListService
from serve.metrics import ServeMetrics
from serve.parameters import decision_parameters, list_parameters
from serve.pipeline import RecommendationPipeline
from serve.readiness import Readiness
from serve.recommend import RecommendService
from serve.records import ServedRecords
from serve.releases import ReleaseHolder
from serve.schemas import (
    EventIn,
    EventsAnswer,
    ItemAnswer,
    ItemIn,
    ItemPatch,
    ListAnswer,
    Problem,
    RecommendAnswer,
    RecommendRequest,
    SimilarAnswer,
)
from serve.settings import PipelineSettings
from serve.signing import Signer
from serve.stages import StoreEventSink, StoreProfiles
from serve.user_schemas import DeclareAnswer, LinkAnswer, LinkRequest, ProfileAnswer, ProfileRequest, UserIn
from serve.users import UserService
from serve.wiring import Stages

app = FastAPI(title="Raycommend", version="1", description="Recommendations with reasons, in real time.")
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (400, 401, 413, 422, 429, 500, 503)
}
_ITEM_PROBLEMS = {**_PROBLEMS, 404: {"model": Problem}}
_LIST_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem} for status in (401, 404, 422, 429, 500, 503)
}


@app.exception_handler(HTTPException)
async def _not_ours(request: Request, error: HTTPException) -> Response:
    """Give unknown paths and methods the same kind of document as everything else."""
    detail = "there is no such route or method; see /docs"
    response = problem(request_id_of(request), error.status_code, str(error.detail), detail)
    response.headers.update(error.headers or {})
    return response


@ray_serve.ingress(app)
class IngressDeployment:
    """Builds the services of one replica and hands requests to them."""

    async def __init__(self, config: ReplicaConfig, stages: Stages) -> None:  # type: ignore[misc]  # Serve awaits it
        from pathlib import Path

        check_packages(config)
        settings = config.settings
        self._store: ProfileStore = open_store(config)
        self._metrics = ServeMetrics()
        self._releases: ReleaseHolder = await follow_releases(
            config, self._store, warm_ingress(stages), embeds=stages.encoder is None
        )
        self._live = await follow_statistics(config, self._releases)
        pool = executor(settings.ingress.threads, "ingress")
        self._cache = open_cache(config)
        summaries = open_summaries(config, self._cache)
        ports = stages.ports(self._releases.bundle, self._store, pool, summaries)
        signer = Signer(signing_key())
        self._records = ServedRecords(Path(config.records_folder), dropped=self._metrics.record_dropped)
        self._records.start()
        reasons = open_reasons(config, self._cache, observe=self._metrics.reason_cache)
        decisions = open_decisions(config, self._cache)
        self._pipeline = RecommendationPipeline(
            fetcher=ports.fetcher,
            encoder=ports.encoder,
            retriever=ports.retriever,
            ranker=ports.ranker,
            bundle_of=self._releases.bundle,
            settings=settings.pipeline,
            recorder=self._metrics,
        )
        self._edge = HttpEdge(
            keys=api_keys(),
            settings=settings,
            recommend=RecommendService(
                pipeline=self._pipeline,
                explainer=ports.explainer,
                releases=self._releases,
                signer=signer,
                records=self._records,
                metrics=self._metrics,
                settings=settings,
                executor=pool,
                reason_cache=reasons,
                decisions=decisions,
            ),
            events=EventService(
                StoreEventSink(self._store),
                signer,
                self._metrics,
                settings,
                encoder=ports.encoder,
                releases=self._releases,
            ),
            lists=ListService(
                retriever=ports.retriever,
                releases=self._releases,
                metrics=self._metrics,
                settings=settings,
                executor=pool,
            ),
            items=ItemService(open_items(config), ports.encoder, self._releases),
            users=UserService(StoreProfiles(self._store), self._releases, ports.encoder, summaries),
            later=LaterReasons(ports.explainer, decisions, reasons, self._metrics, settings),
            ready=Readiness(
                self._store, self._releases, ports.explainer, tenants=api_keys().tenants, live=self._live
            ).state,
            metrics=self._metrics,
        )
        self._lag = asyncio.create_task(loop_lag(self._observe_lag))

    def reconfigure(self, tunables: dict[str, Any]) -> None:
        """Take the tunables of a lightweight update; Serve calls this without restarting the replica."""
        self._pipeline.tune(PipelineSettings.model_validate(tunables))

    async def __del__(self) -> None:
        """Write the served records that are still queued; Serve awaits this when the replica stops."""
        await self._records.stop()

    @app.post(
        "/v1/recommend", response_model=RecommendAnswer, responses=_PROBLEMS, openapi_extra=body_of(RecommendRequest)
    )
    async def recommend(self, request: Request) -> Response:
        """Ranked items for a user or session, as JSON or (Accept: text/event-stream) as server-sent events."""
        return await self._edge.recommend(request)

    @app.get(
        "/v1/decisions/{decision_id}/reasons",
        response_model=ReasonsAnswer,
        responses=_LIST_PROBLEMS,
        openapi_extra={"parameters": decision_parameters()},
    )
    async def reasons(self, request: Request) -> Response:
        """The reasons of an explained list by its decision id, as JSON or (Accept: text/event-stream) as they come."""
        return await self._edge.reasons(request)

    @app.post(
        "/v1/events",
        status_code=202,
        response_model=EventsAnswer,
        responses=_PROBLEMS,
        openapi_extra=body_of(EventIn, or_list=True),
    )
    async def events(self, request: Request) -> Response:
        """Take one event or up to 500; answered when they are durable."""
        return await self._edge.events(request)

    @app.get(
        "/v1/items/{item_id}/similar",
        response_model=SimilarAnswer,
        responses=_LIST_PROBLEMS,
        openapi_extra=list_parameters(item=True),
    )
    async def similar(self, request: Request) -> Response:
        """What is like an item in content or was taken after it, and what is taken together with it."""
        return await self._edge.similar(request)

    @app.put(
        "/v1/items/{item_id}", response_model=ItemAnswer, responses=_ITEM_PROBLEMS, openapi_extra=item_body(ItemIn)
    )
    async def put_item(self, request: Request) -> Response:
        """Add an item or replace it; recommendable at once by content, answered when it is durable."""
        return await self._edge.item(request)

    @app.patch(
        "/v1/items/{item_id}", response_model=ItemAnswer, responses=_ITEM_PROBLEMS, openapi_extra=item_body(ItemPatch)
    )
    async def patch_item(self, request: Request) -> Response:
        """Change some fields of an item, hide it, or say whether it is available."""
        return await self._edge.item(request)

    @app.delete("/v1/items/{item_id}", response_model=ItemAnswer, responses=_ITEM_PROBLEMS, openapi_extra=item_body())
    async def delete_item(self, request: Request) -> Response:
        """Take an item out; it is recommended no more."""
        return await self._edge.item(request)

    @app.get("/v1/items:trending", response_model=ListAnswer, responses=_LIST_PROBLEMS, openapi_extra=list_parameters())
    async def trending(self, request: Request) -> Response:
        """The items taken most of late."""
        return await self._edge.ranking(request, "trending")

    @app.get("/v1/items:popular", response_model=ListAnswer, responses=_LIST_PROBLEMS, openapi_extra=list_parameters())
    async def popular(self, request: Request) -> Response:
        """The items taken most of all time."""
        return await self._edge.ranking(request, "popular")

    @app.put("/v1/users", response_model=DeclareAnswer, responses=_PROBLEMS, openapi_extra=body_of(UserIn))
    async def declare(self, request: Request) -> Response:
        """Replace what a user or a session declares of themselves; answered when that is durable."""
        return await self._edge.declare(request)

    @app.post("/v1/users:link", response_model=LinkAnswer, responses=_PROBLEMS, openapi_extra=body_of(LinkRequest))
    async def link(self, request: Request) -> Response:
        """Merge an anonymous session into the user it turned out to be; answered when that is durable."""
        return await self._edge.link(request)

    @app.post(
        "/v1/users:profile", response_model=ProfileAnswer, responses=_PROBLEMS, openapi_extra=body_of(ProfileRequest)
    )
    async def profile(self, request: Request) -> Response:
        """What is stored of a user or a session, readable."""
        return await self._edge.profile(request)

    @app.get("/healthz")
    async def healthz(self) -> dict[str, str]:
        """Alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(self, request: Request) -> Response:
        """Ready, with the state of each dependency and the release."""
        return await self._edge.readyz(request)

    async def check_health(self) -> None:
        """Healthy while this runs: a store or an engine that is away never restarts the ingress."""

    def _observe_lag(self, seconds: float) -> None:
        self._metrics.loop_lag(seconds)
        self._metrics.in_flight(self._edge.in_flight)
        if self._live is not None:
            for tenant, count in self._live.unknown_items.items():
                self._metrics.unknown_items(tenant, count)


describe(app, [RecommendRequest, EventIn, ItemIn, ItemPatch, UserIn, LinkRequest, ProfileRequest])
