"""The ingress without Ray: the real edge, services and store in process, behind real routes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from models.explain.decisions import DecisionBook
from models.explain.reason_cache import TieredReasons
from models.items.log import MemoryItemLog
from models.retrieval.settings import RetrievalSettings
from models.store.cache_store import MemoryCache
from models.store.port import StoreError
from models.store.profiles import MemoryProfiles
from serve.auth import Keys
from serve.fakes import FakeExplainer, FakeQueryEncoder, FakeRanker, FakeRetriever, SilentMetrics
from serve.http import HttpEdge
from serve.ingest import EventService
from serve.items import ItemService
from serve.later import LaterReasons
from serve.lists import ListService
from serve.live_items import ItemFollower
from serve.pipeline import RecommendationPipeline
from serve.readiness import Readiness
from serve.recommend import RecommendService
from serve.records import ServedRecords
from serve.releases import ReleaseHolder
from serve.settings import ServeSettings
from serve.signing import Signer
from serve.stages import StoreEventSink, StoreFeatureFetcher, StoreProfiles
from serve.users import UserService


class Edge:
    """One ingress replica in this process, and a client of it."""

    def __init__(self, tiny: Any, folder: Path, settings: ServeSettings, keys: str = "") -> None:
        self.tiny, self.settings, self.folder = tiny, settings, folder
        self.store = MemoryProfiles(durability="fsync")
        self.store_error: StoreError | None = None
        self.keys = Keys.parse(keys)
        self.metrics = SilentMetrics()
        self.signer = Signer(b"0123456789abcdef")
        self.explainer = FakeExplainer()
        self.cache = MemoryCache()
        self.decisions: DecisionBook | None = DecisionBook(self.cache, ttl_s=60)
        self.reason_cache: TieredReasons | None = None
        self.retriever = FakeRetriever(self._bundle)
        self.similar: Any = None
        self.live: Any = None
        self.ranker = FakeRanker()
        self.encoder = FakeQueryEncoder()
        self.fetcher: Any = StoreFeatureFetcher(self)
        self.sink: Any = StoreEventSink(self)
        self.item_log = MemoryItemLog()
        self.retrieval = RetrievalSettings()
        self.pool = ThreadPoolExecutor(1)
        self.records = ServedRecords(folder / "records", dropped=self.metrics.record_dropped)

    def _bundle(self, tenant: str, release_id: str) -> Any:
        return self.releases.bundle(tenant, release_id)

    # The edge's store is this object, so that a test can take the store away.
    async def fetch(self, *args: Any, **named: Any) -> Any:
        self._away()
        return await self.store.fetch(*args, **named)

    async def append(self, *args: Any, **named: Any) -> Any:
        self._away()
        return await self.store.append(*args, **named)

    async def link(self, *args: Any, **named: Any) -> Any:
        self._away()
        return await self.store.link(*args, **named)

    async def declare(self, *args: Any, **named: Any) -> Any:
        self._away()
        return await self.store.declare(*args, **named)

    async def ping(self) -> None:
        self._away()

    def _away(self) -> None:
        if self.store_error is not None:
            raise self.store_error

    async def start(self) -> Edge:
        for tenant in self.keys.tenants:
            await self.store.move_release(tenant, self.tiny.release.to_json(), expected_epoch=0)
        self.releases = ReleaseHolder(
            self.store,
            lambda _: self.tiny.artifacts,
            tenants=self.keys.tenants,
            settings=self.retrieval,
            warm=lambda _: None,
            items=ItemFollower(self.item_log, warm=lambda _: None),
        )
        assert await self.releases.refresh(strict=True)
        pipeline = RecommendationPipeline(
            fetcher=self.fetcher,
            encoder=self.encoder,
            retriever=self.retriever,
            ranker=self.ranker,
            bundle_of=self._bundle,
            settings=self.settings.pipeline,
            recorder=self.metrics,
        )
        self.edge = HttpEdge(
            keys=self.keys,
            settings=self.settings,
            recommend=RecommendService(
                pipeline=pipeline,
                explainer=self.explainer,
                releases=self.releases,
                signer=self.signer,
                records=self.records,
                metrics=self.metrics,
                settings=self.settings,
                executor=self.pool,
                reason_cache=self.reason_cache,
                decisions=self.decisions,
            ),
            events=EventService(
                self.sink, self.signer, self.metrics, self.settings, encoder=self.encoder, releases=self.releases
            ),
            lists=ListService(
                retriever=self.similar or self.retriever,
                releases=self.releases,
                metrics=self.metrics,
                settings=self.settings,
                executor=self.pool,
            ),
            items=ItemService(self.item_log, self.encoder, self.releases),
            users=UserService(StoreProfiles(self), self.releases, self.encoder),
            later=LaterReasons(self.explainer, self.decisions, self.reason_cache, self.metrics, self.settings),
            ready=Readiness(self, self.releases, self.explainer, tenants=self.keys.tenants, live=self.live).state,
            metrics=self.metrics,
        )
        # What the edge does not catch reaches the test as an exception.
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self._app()), base_url="http://edge")
        return self

    def _app(self) -> FastAPI:
        app, edge = FastAPI(), self.edge

        @app.post("/v1/recommend")
        async def recommend(request: Request) -> Response:
            return await edge.recommend(request)

        @app.post("/v1/events")
        async def events(request: Request) -> Response:
            return await edge.events(request)

        @app.get("/v1/items/{item_id}/similar")
        async def similar(request: Request) -> Response:
            return await edge.similar(request)

        @app.api_route("/v1/items/{item_id}", methods=["PUT", "PATCH", "DELETE"])
        async def item(request: Request) -> Response:
            return await edge.item(request)

        @app.get("/v1/decisions/{decision_id}/reasons")
        async def reasons(request: Request) -> Response:
            return await edge.reasons(request)

        @app.get("/v1/items:popular")
        async def popular(request: Request) -> Response:
            return await edge.ranking(request, "popular")

        @app.get("/v1/items:trending")
        async def trending(request: Request) -> Response:
            return await edge.ranking(request, "trending")

        @app.put("/v1/users")
        async def declare(request: Request) -> Response:
            return await edge.declare(request)

        @app.post("/v1/users:link")
        async def link(request: Request) -> Response:
            return await edge.link(request)

        @app.post("/v1/users:profile")
        async def profile(request: Request) -> Response:
            return await edge.profile(request)

        @app.get("/readyz")
        async def readyz(request: Request) -> Response:
            return await edge.readyz(request)

        return app

    async def recommend(self, body: Any = None, **headers: str) -> httpx.Response:
        return await self.post("/v1/recommend", {} if body is None else body, **headers)

    async def events(self, body: Any, **headers: str) -> httpx.Response:
        return await self.post("/v1/events", body, **headers)

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await self.http.post(path, content=content, headers=given)

    async def send(self, method: str, path: str, body: Any = None) -> httpx.Response:
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.http.request(method, path, content=content, headers={"content-type": "application/json"})

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await self.http.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    async def stream(self, body: Any) -> list[tuple[str, dict[str, Any]]]:
        response = await self.recommend(body, accept="text/event-stream")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        frames = [f.split("\n") for f in response.text.strip().split("\n\n")]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]

    async def close(self) -> None:
        await self.http.aclose()
        await self.records.stop()
        await self.releases.stop()
        self.pool.shutdown()


@pytest.fixture
async def make_edge(tiny, tmp_path) -> AsyncIterator[Any]:
    made: list[Edge] = []

    async def make(*, keys: str = "", release: Any = tiny, prepare: Any = None, **settings: Any) -> Edge:
        edge = Edge(release, tmp_path, ServeSettings(**settings), keys)
        if prepare is not None:
            prepare(edge)
        made.append(await edge.start())
        return edge

    yield make
    for edge in made:
        await edge.close()


@pytest.fixture
async def edge(make_edge) -> Edge:
    return await make_edge()


@pytest.fixture
def problem() -> Callable[[httpx.Response, int], dict[str, Any]]:
    """Checks that a response is the right kind of document and repeats nothing (secrets hold "Zebra77"); returns it."""

    def check(response: httpx.Response, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        body = response.json()
        assert set(body) == {"type", "title", "status", "detail", "request_id"} and body["status"] == status
        assert response.headers["x-request-id"] == body["request_id"] != ""
        for leak in ("Zebra77", "Traceback", 'File "', ".py", "site-packages", "/serve/", "\x00", "pydantic.dev"):
            assert leak not in response.text
        assert len(response.text) < 10_000
        return body

    return check
