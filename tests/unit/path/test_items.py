"""Items over HTTP: durable before the answer, known to this replica when it leaves, to the others a poll later."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from models.bundle import ReleaseBundle
from models.items.log import MemoryItemLog
from models.retrieval.settings import RetrievalSettings
from models.store.memory import MemoryStore
from models.store.port import StoreUnavailable
from serve.errors import DependencyError, InvalidRequest, NotFound, OverloadError
from serve.fakes import FakeQueryEncoder
from serve.items import ItemService
from serve.live_items import ItemFollower
from serve.releases import ReleaseHolder
from serve.schemas import ItemIn, ItemPatch

WHO = {"tenant": "main", "request_id": "r"}


class Unreachable(MemoryItemLog):
    """A log that can be taken away."""

    away = False

    async def append_item(self, tenant, change):
        if self.away:
            raise StoreUnavailable("away")
        return await super().append_item(tenant, change)

    async def read_items(self, tenant, *, after, limit=1000):
        if self.away:
            raise StoreUnavailable("away")
        return await super().read_items(tenant, after=after, limit=limit)


class Replica:
    """A replica that follows the pointer and the item log, and takes changes."""

    def __init__(self, tiny, store: MemoryStore, log: MemoryItemLog) -> None:
        self.warmed: list[int] = []
        self.holder = ReleaseHolder(
            store,
            lambda _: tiny.artifacts,
            tenants=("main",),
            settings=RetrievalSettings(),
            warm=lambda bundle: None,
            items=ItemFollower(log, warm=lambda bundle: self.warmed.append(bundle.item_sequence)),
        )
        self.encoder = FakeQueryEncoder()
        self.items = ItemService(log, self.encoder, self.holder)

    @property
    def bundle(self) -> ReleaseBundle:
        return self.holder.bundle("main", self.holder.current("main"))


class World:
    """Two replicas of one store."""

    def __init__(self, tiny) -> None:
        self.tiny, self.store, self.log = tiny, MemoryStore(), Unreachable(limit=20)
        self.here, self.there = (Replica(tiny, self.store, self.log) for _ in range(2))

    async def start(self) -> World:
        assert await self.store.move_release("main", self.tiny.release.to_json(), expected_epoch=0)
        await self.here.holder.refresh(strict=True)
        await self.there.holder.refresh(strict=True)
        return self


@pytest.fixture
async def world(tiny) -> World:
    return await World(tiny).start()


async def test_an_item_is_known_here_when_the_answer_leaves_and_elsewhere_after_a_look(world: World) -> None:
    answer = await world.here.items.put("new-1", ItemIn(title="Quixotic"), **WHO)
    assert answer == {"request_id": "r", "item_id": "new-1", "status": "created", "sequence": 1}
    assert world.here.bundle.catalog.row("new-1") is not None
    assert world.here.warmed == [1]
    assert world.there.bundle.catalog.row("new-1") is None
    await world.there.holder.catch_up()
    assert world.there.bundle.catalog.row("new-1") == world.here.bundle.catalog.row("new-1")


async def test_a_change_is_possible_wherever_it_arrives_right_after_the_item(world: World) -> None:
    await world.here.items.put("new-1", ItemIn(title="Quixotic"), **WHO)
    changed = await world.there.items.patch("new-1", ItemPatch(title="Zeppelin"), **WHO)
    assert changed["status"] == "changed"
    removed = await world.here.items.remove("new-1", **WHO)
    assert (removed["status"], removed["sequence"]) == ("removed", 3)
    for refused in (
        world.there.items.remove("new-1", **WHO),
        world.there.items.patch("new-1", ItemPatch(text="x"), **WHO),
    ):
        with pytest.raises(NotFound):
            await refused
    assert (await world.there.items.put("new-1", ItemIn(title="Back"), **WHO))["status"] == "created"


async def test_only_a_change_of_what_is_read_embeds_the_item_again(world: World) -> None:
    await world.here.items.put("new-1", ItemIn(title="Quixotic", attributes={"genres": "Drama"}), **WHO)
    row = world.here.bundle.catalog.row("new-1")
    before = world.here.bundle.embeddings[row]
    world.here.encoder.trouble.error = DependencyError("the encoder is away")
    assert (await world.here.items.patch("new-1", ItemPatch(hidden=True), **WHO))["status"] == "changed"
    with pytest.raises(DependencyError):
        await world.here.items.patch("new-1", ItemPatch(title="Zeppelin"), **WHO)
    world.here.encoder.trouble.error = None
    await world.here.items.patch("new-1", ItemPatch(title="Zeppelin"), **WHO)
    assert (world.here.bundle.embeddings[row] != before).any()
    assert world.here.bundle.catalog.labels(row) == {"genres": ("Drama",)}


async def test_replicas_that_start_later_know_every_change(world: World) -> None:
    for n in range(3):
        await world.here.items.put(f"new-{n}", ItemIn(title=f"Title {n}"), **WHO)
    late = Replica(world.tiny, world.store, world.log)
    await late.holder.start(poll_s=1.0, wait_s=5.0, item_poll_s=0.01)
    assert late.bundle.item_sequence == 3
    await world.here.items.put("new-3", ItemIn(title="while it runs"), **WHO)
    async with asyncio.timeout(5):
        while late.bundle.item_sequence < 4:  # noqa: ASYNC110 - the replica looks by itself, and tells nobody
            await asyncio.sleep(0.01)
    await late.holder.stop()


async def test_a_log_that_is_away_refuses_the_change_and_serving_goes_on(world: World) -> None:
    world.log.away = True
    with pytest.raises(DependencyError):
        await world.here.items.put("new-1", ItemIn(title="Quixotic"), **WHO)
    world.log.away = False
    assert world.here.bundle.catalog.row("new-1") is None
    assert (await world.here.items.put("new-1", ItemIn(title="Quixotic"), **WHO))["sequence"] == 1


async def test_a_full_log_says_what_to_do(world: World) -> None:
    for n in range(20):
        await world.here.items.put(f"new-{n}", ItemIn(title="x"), **WHO)
    with pytest.raises(OverloadError, match="build and publish a release") as refused:
        await world.here.items.put("one-more", ItemIn(title="x"), **WHO)
    assert refused.value.retry_after_s > 1


async def test_an_attribute_of_the_other_kind_is_refused_by_name(world: World) -> None:
    with pytest.raises(InvalidRequest, match="year: the catalog has a number"):
        await world.here.items.put("new-1", ItemIn(title="x", attributes={"year": "nineteen"}), **WHO)
    with pytest.raises(InvalidRequest, match="genre: the catalog has a text"):
        await world.here.items.put("new-1", ItemIn(title="x", attributes={"genre": 3}), **WHO)


async def test_praise_comes_from_reviews_and_from_nobody_else(world: World) -> None:
    for name in ("praised_for", "criticised_for", "disputed"):
        with pytest.raises(InvalidRequest, match=f"{name}: only what reviews say"):
            await world.here.items.put("new-1", ItemIn(title="x", attributes={name: "soundtrack"}), **WHO)
    assert not await world.log.read_items("main", after=0)


async def test_an_encoder_of_another_size_is_not_let_in(world: World) -> None:
    world.here.items = ItemService(world.log, FakeQueryEncoder(16), world.here.holder)
    with pytest.raises(DependencyError, match="encoder"):
        await world.here.items.put("new-1", ItemIn(title="x"), **WHO)
    assert not await world.log.read_items("main", after=0)


async def test_an_item_is_recommended_by_search_right_after_its_put(make_edge) -> None:
    edge = await make_edge()
    put = await edge.send("PUT", "/v1/items/new-1", {"title": "Quixotic Zeppelin", "attributes": {"genres": ["Drama"]}})
    assert put.status_code == 200, put.text
    assert put.json()["status"] == "created"
    listed = await edge.get("/v1/items/new-1/similar")
    assert listed.status_code == 200
    assert (await edge.send("DELETE", "/v1/items/new-1")).json()["status"] == "removed"
    assert (await edge.get("/v1/items/new-1/similar")).status_code == 404


BAD = [
    ("PUT", "/v1/items/new-1", b"{", 400),
    ("PUT", "/v1/items/new-1", b"[]", 422),
    ("PUT", "/v1/items/new-1", {}, 422),
    ("PUT", "/v1/items/new-1", {"title": "   "}, 422),
    ("PUT", "/v1/items/new-1", {"title": 3}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x" * 1001}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "text": "y" * 100_001}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "colour": "red"}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "attributes": {"year": "soon"}}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "attributes": {"a/b": "c"}}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "attributes": {"year": True}}, 422),
    ("PUT", "/v1/items/new-1", {"title": "x", "hidden": "yes"}, 422),
    ("PUT", "/v1/items/no%20id", {"title": "x"}, 422),
    ("PATCH", "/v1/items/i01", {}, 422),
    ("PATCH", "/v1/items/nobody", {"title": "x"}, 404),
    ("DELETE", "/v1/items/nobody", None, 404),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD)
async def test_bad_changes_get_a_problem_and_change_nothing(make_edge, method, path, body, status) -> None:
    edge = await make_edge()
    answer: httpx.Response = await edge.send(method, path, body)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "detail", "request_id"}
    assert not await edge.item_log.read_items("main", after=0)


async def test_a_picture_is_taken_kept_and_taken_away_over_http(edge, problem) -> None:
    where = "https://cdn.example.org/x1.png"
    assert (await edge.send("PUT", "/v1/items/x1", {"title": "Baltic Maps", "image": where})).status_code == 200
    assert (await edge.send("PATCH", "/v1/items/x1", {"title": "Baltic Maps II"})).status_code == 200
    bundle = edge.releases.bundle("main", edge.releases.current("main"))
    assert bundle.catalog.item(bundle.catalog.row("x1")).media == {"image": where}
    assert (await edge.send("PATCH", "/v1/items/x1", {"image": ""})).status_code == 200
    bundle = edge.releases.bundle("main", edge.releases.current("main"))
    assert bundle.catalog.item(bundle.catalog.row("x1")).media == {}
    for wrong in (7, "a\nb", "x" * 5000, ["x"]):
        problem(await edge.send("PUT", "/v1/items/x1", {"title": "B", "image": wrong}), 422)
