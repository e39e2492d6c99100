"""Swaps to releases of another encoder under requests: its own encoder understands a query, no other."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import load_bundle
from models.declared import Declaration
from models.encoder import Encoder, HashEncoder
from models.events import Event, EventType
from models.hub import HubError
from models.intent import encoder_tag, pack
from models.items.change import ItemChange
from models.items.log import MemoryItemLog
from models.releases import Release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.store.board import MemoryBoard
from models.store.profiles import MemoryProfiles
from models.text_space import EncoderShelf
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.publish import Publisher, PublishError, Swap
from pipelines.settings import PipelinesSettings
from serve.clients import QueryEncoderClient
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.deployments.batches import each
from serve.deployments.replica import warm_encoder
from serve.fakes import FakeRanker, LocalHandle
from serve.live_items import ItemFollower
from serve.pipeline import RecommendationPipeline
from serve.releases import KEPT, ReleaseHolder
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever, ReleaseQueryEncoder, StoreFeatureFetcher

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when the clients first import its exceptions
    import ray.serve.exceptions  # noqa: F401

pytestmark = pytest.mark.timeout(120)

NOW = 1_760_000_000_000
TEXTS = ("western", "comedy", "a quiet drama", "space war")
PATIENT = PipelineSettings(
    features=StageBudget(budget_ms=5000),
    query=StageBudget(budget_ms=5000),
    retrieve=StageBudget(budget_ms=5000),
    rank=StageBudget(budget_ms=5000),
)


class Turned(HashEncoder):
    """Another encoder of the same dimension."""

    def encode(self, texts: Any) -> np.ndarray:
        return np.roll(super().encode(texts), 7, axis=1)


MAKERS: dict[str, Callable[[], Encoder]] = {
    "hash": HashEncoder,
    "wide": lambda: HashEncoder(48),
    "turned": Turned,
    "fourth": lambda: HashEncoder(40),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, items_of, log_of) -> tuple[ArtifactStore, dict[str, Release]]:
    """The same items embedded by each encoder."""
    artifacts = ArtifactStore(str(tmp_path_factory.mktemp("spaces")), cache=tmp_path_factory.mktemp("spaces-cache"))
    dataset = Dataset("tiny", items_of(40), log_of())

    def built(uri: str) -> Release:
        of = {"settings": PipelinesSettings(train_ranker=False), "retrieval": RetrievalSettings()}
        return Builder(artifacts, encoder=MAKERS[uri], encoder_uri=uri, **of).run(dataset).release

    return artifacts, {uri: built(uri) for uri in MAKERS}


class World:
    """An ingress and a host of encoders, each with its own releases; calls between them pickle on their way."""

    def __init__(self, made: tuple[ArtifactStore, dict[str, Release]], pool: ThreadPoolExecutor) -> None:
        self.artifacts, self.releases = made
        self.store, self.board = MemoryProfiles(durability="fsync"), MemoryBoard()
        self.log = MemoryItemLog()
        self.broken: dict[str, Exception] = {}
        self.loaded: Counter[str] = Counter()
        self.shelf = EncoderShelf(self._load)
        self.host = self._holder(warm_encoder, encoders=self.shelf)
        self.ingress = self._holder(lambda b: b.engine, items=ItemFollower(self.log, warm=lambda b: b.engine))
        real = ReleaseQueryEncoder(self.host.ready, pool)

        async def encode_many(members: Any) -> Any:
            return "host", await each(members, real.encode)

        handle = LocalHandle(SimpleNamespace(encode_many=encode_many))
        self.pipeline = RecommendationPipeline(
            fetcher=StoreFeatureFetcher(self.store),
            encoder=QueryEncoderClient(handle, min_replicas=1, max_waiting=64),
            retriever=EngineRetriever(self.ingress.bundle, pool),
            ranker=FakeRanker(lambda _, candidates: candidates.scores),
            bundle_of=self.ingress.bundle,
            settings=PATIENT,
            recorder=SilentRecorder(),
        )

    def _load(self, uri: str, max_tokens: int) -> Encoder:
        if uri in self.broken:
            raise self.broken[uri]
        self.loaded[uri] += 1
        return MAKERS[uri]()

    def _holder(self, warm: Any, **more: Any) -> ReleaseHolder:
        of = {"tenants": ("main",), "settings": RetrievalSettings(), "board": self.board, "encoder": "hash"}
        return ReleaseHolder(self.store, lambda _: self.artifacts, warm=warm, **of, **more)

    async def publish(self, uri: str) -> Swap:
        async def turn(_: float) -> None:
            for holder in (self.ingress, self.host):
                await holder.prepare()
                await holder.report()

        swap = await Publisher(self.store, self.board, tenant="main", sleep=turn).swap(self.releases[uri])
        await self.look()
        return swap

    async def look(self) -> None:
        for holder in (self.ingress, self.host):
            await holder.refresh()
            await holder.report()

    def serving(self) -> set[str]:
        now = {holder.current("main") for holder in (self.ingress, self.host)}
        return {uri for uri, release in self.releases.items() if release.release_id in now}

    async def ask(self, **wish: Any) -> tuple[str, Any]:
        """Return the encoder of the release that answered, and the answer; nothing of it may be degraded."""
        pinned = self.ingress.current("main")
        ctx = RequestContext("req", "main", pinned, Deadline.after_ms(20_000.0), now_ms=NOW)
        slate = await self.pipeline.recommend(ctx, RecommendRequest(**{"k": 10, **wish}))
        assert ctx.degraded == []
        return next(uri for uri, release in self.releases.items() if release.release_id == pinned), slate

    def wanted(self, uri: str, text: str) -> tuple[np.ndarray, list[str]]:
        """What a release answers that nothing else is served beside."""
        vector = MAKERS[uri]().encode([text])[0]
        bundle = load_bundle(self.artifacts, self.releases[uri], settings=RetrievalSettings())
        found = bundle.engine.retrieve(RetrievalQuery(n=PATIENT.candidates, now_ms=NOW, intent=vector))
        return vector, bundle.catalog.item_ids(found.rows)[:10]


@pytest.fixture
async def world(made) -> Any:
    with ThreadPoolExecutor(2) as pool:
        found = World(made, pool)
        await found.publish("hash")
        yield found


@pytest.mark.parametrize("other", ["wide", "turned"])
async def test_lists_under_load_are_of_one_release_and_its_encoder_through_swaps_and_rollbacks(
    world: World, other: str
) -> None:
    wanted = {(uri, text): world.wanted(uri, text) for uri in ("hash", other) for text in TEXTS}
    for holder in (world.ingress, world.host):
        # The host of encoders looks seldom: it answers for what it has prepared until it sees that served.
        await holder.start(poll_s=0.02 if holder is world.ingress else 0.25, wait_s=20)
    answers: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def ask(turn: int) -> None:
        while not stopped.is_set():
            text = TEXTS[turn := (turn + 1) % len(TEXTS)]
            uri, slate = await world.ask(query=text)
            vector, ids = wanted[uri, text]
            assert np.array_equal(slate.query.intent, vector) and slate.item_ids == ids
            answers[uri] += 1

    async def swap() -> None:
        try:
            for uri in (other, "hash", other, "hash"):
                done = await Publisher(world.store, world.board, tenant="main").swap(world.releases[uri])
                assert done.moved and done.replicas == 2
                await asyncio.sleep(0.4)
        finally:
            stopped.set()

    await asyncio.gather(swap(), *(ask(turn) for turn in range(3)))
    for holder in (world.ingress, world.host):
        await holder.stop()
    assert all(answers[uri] > 5 for uri in ("hash", other))
    assert world.loaded == {"hash": 1, other: 1}, "a rollback loads nothing"


async def test_no_more_encoders_are_held_than_releases(world: World) -> None:
    for uri in ("wide", "turned", "fourth", "wide"):
        await world.publish(uri)
        assert world.serving() == {uri}
    gc.collect()
    assert len(world.shelf) == KEPT and world.loaded["wide"] == 2


async def test_releases_of_one_encoder_share_it(world: World) -> None:
    second = replace(world.releases["hash"], item_log_seq=1)
    world.releases = {**world.releases, "again": second}
    await world.publish("again")
    held = [world.host.bundle("main", r.release_id).space.encoder for r in (world.releases["hash"], second)]
    assert held[0] is held[1] and world.loaded == {"hash": 1}


TROUBLES = {
    "not fetched": (HubError("no such revision"), "HubError: the encoder wide cannot be fetched: no such revision"),
    "not loaded": (OSError("no file named model.safetensors"), "the encoder wide cannot be loaded: OSError: no file"),
    "out of memory": (MemoryError("no memory"), "the encoder wide cannot be loaded: MemoryError: no memory"),
}


@pytest.mark.parametrize(("trouble", "said"), TROUBLES.values(), ids=TROUBLES.keys())
async def test_an_encoder_that_cannot_be_had_is_refused_by_name_and_serving_goes_on(
    world: World, trouble: Exception, said: str
) -> None:
    world.broken["wide"] = trouble
    with pytest.raises(PublishError, match=f"1 of 2 replicas refused {world.releases['wide'].release_id}.*{said}"):
        await world.publish("wide")
    await world.look()
    uri, slate = await world.ask(query="western")
    assert (uri, slate.item_ids) == ("hash", world.wanted("hash", "western")[1])
    world.broken.clear()
    for holder in (world.ingress, world.host):
        await holder.prepare()  # the proposal is withdrawn, and with it what was refused
        await holder.report()
    assert (await world.publish("wide")).moved
    assert (await world.ask(query="western"))[0] == "wide"


async def test_an_encoder_of_other_dimensions_than_the_vectors_is_refused(world: World, monkeypatch) -> None:
    monkeypatch.setitem(MAKERS, "wide", HashEncoder)
    with pytest.raises(PublishError, match="the encoder wide gives 32 dimensions, not 48"):
        await world.publish("wide")
    await world.look()
    assert world.serving() == {"hash"}


async def test_a_replica_tries_again_to_fetch_the_encoder_of_what_is_served(world: World) -> None:
    world.broken["wide"] = HubError("the network is away")
    text = world.releases["wide"].to_json()
    assert await world.store.move_release("main", text, expected_epoch=1)
    await world.host.refresh()
    assert world.host.current("main") == world.releases["hash"].release_id
    world.broken.clear()
    await world.host.refresh()
    assert world.host.current("main") == world.releases["wide"].release_id


def searched(user: str, vector: np.ndarray, tag: bytes) -> Event:
    return Event("s1", user, EventType.search, NOW - 1000, intent=pack(vector, tag))


@pytest.mark.parametrize("other", ["wide", "turned"])
async def test_what_users_searched_and_declared_before_a_swap_is_not_compared_with_new_vectors(
    world: World, other: str
) -> None:
    vector = HashEncoder().encode(["western"])[0]
    before = (await world.ask(user_id="u1"))[1].item_ids
    await world.store.append("main", [searched("u1", vector, encoder_tag("hash"))], now_ms=NOW)
    labels = (("genre", "Comedy"),)
    await world.store.declare("main", "u2", Declaration(labels, vector, NOW - 5, encoder_tag("hash")), now_ms=NOW)
    _, slate = await world.ask(user_id="u1")
    assert slate.item_ids != before and slate.query.intent is not None
    assert (await world.ask(user_id="u2"))[1].user.declared.vector is not None
    await world.publish(other)
    _, slate = await world.ask(user_id="u1")
    assert slate.query.intent is None and slate.item_ids == (await world.ask(user_id="nobody"))[1].item_ids
    _, slate = await world.ask(user_id="u2")
    assert slate.user.declared.vector is None and slate.user.declared.labels == labels
    await world.publish("hash")
    assert (await world.ask(user_id="u1"))[1].query.intent is not None, "the store keeps it"


async def test_vectors_from_before_there_were_tags_are_those_of_the_encoder_of_the_settings(world: World) -> None:
    vector = HashEncoder().encode(["western"])[0]
    await world.store.append("main", [searched("u1", vector, b"")], now_ms=NOW)
    assert (await world.ask(user_id="u1"))[1].query.intent is not None
    await world.publish("turned")
    assert (await world.ask(user_id="u1"))[1].query.intent is None


@pytest.mark.parametrize("other", ["wide", "turned"])
async def test_an_item_that_the_encoder_before_read_is_found_by_name_and_never_by_its_vector(
    world: World, other: str
) -> None:
    vector = HashEncoder().encode(["quixotic zeppelin"])[0]
    change = ItemChange("put", "new-1", NOW, "quixotic zeppelin", "", {"genre": ("Airships",)}, vector=vector)
    await world.log.append_item("main", replace(change, tag=encoder_tag("hash")))
    title = ItemChange("patch", "i05", NOW, "quixotic zeppelin", vector=vector, tag=encoder_tag("hash"))
    await world.log.append_item("main", title)
    await world.ingress.catch_up()
    assert set((await world.ask(query="quixotic zeppelin"))[1].item_ids[:2]) == {"new-1", "i05"}
    await world.publish(other)
    await world.ingress.catch_up()
    bundle = world.ingress.bundle("main", world.releases[other].release_id)
    row, known = bundle.catalog.row("new-1"), bundle.catalog.row("i05")
    assert not bundle.embeddings[row].any()
    assert np.array_equal(bundle.embeddings[known], bundle.alone.embeddings[known]) and bundle.embeddings[known].any()
    airships = {"genre": {"any_of": ["Airships"]}}
    assert (await world.ask(query="western", filters=airships, k=1))[1].item_ids == ["new-1"]
    ours = MAKERS[other]().encode(["quixotic zeppelin"])[0]
    await world.log.append_item("main", replace(change, vector=ours, tag=encoder_tag(other)))
    await world.ingress.catch_up()
    assert (await world.ask(query="quixotic zeppelin"))[1].item_ids[0] == "new-1"
    before = world.releases["hash"].release_id
    assert not world.ingress.bundle("main", before).embeddings[row].any()


async def test_whatever_is_embedded_while_serving_is_stored_with_the_tag_of_its_encoder(make_edge) -> None:
    edge = await make_edge()
    tag = encoder_tag("hash")
    await edge.events({"event_id": "s1", "type": "search", "query": "western", "user_id": "u1"})
    await edge.send("PUT", "/v1/users", {"user_id": "u1", "about": "western"})
    await edge.send("PUT", "/v1/items/new-1", {"title": "quixotic zeppelin"})
    await edge.send("PATCH", "/v1/items/i05", {"title": "quixotic zeppelin"})
    await edge.send("PATCH", "/v1/items/i06", {"available": False})
    user = await edge.store.fetch("main", "u1", None, timeout_s=1)
    assert user.intent is not None and user.intent_tag == tag
    assert user.declared.vector is not None and user.declared.tag == tag
    changes = [change for _, change in await edge.item_log.read_items("main", after=0)]
    assert [(c.vector is not None, c.tag) for c in changes] == [(True, tag), (True, tag), (False, b"")]
