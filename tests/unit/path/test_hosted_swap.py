"""Swaps of an index spread over hosts: nobody moves before every host is prepared, and no list mixes two releases."""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import load_bundle
from models.encoder import HashEncoder
from models.hosted import Spread
from models.releases import Release
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.store.board import MemoryBoard
from models.store.memory import MemoryStore
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.publish import Patience, Publisher, PublishError
from pipelines.settings import PipelinesSettings
from serve.clients import IndexShardClient
from serve.context import StageCall
from serve.deployments.batches import each
from serve.fakes import LocalHandle
from serve.index_shards import ShardHosts, ShareSearcher
from serve.releases import ReleaseHolder
from serve.stages import EngineRetriever

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when the clients first import its exceptions
    import ray.serve.exceptions  # noqa: F401

pytestmark = pytest.mark.timeout(120)

HOSTS = 2
QUERIES = tuple(
    RetrievalQuery(n=12, now_ms=0, seed_items=(f"i0{n}",), filters=filters)
    for n in range(3)
    for filters in ({}, {"genre": AttributeFilter(any_of=("Comedy",))})
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, items_of, log_of) -> tuple[ArtifactStore, list[Release]]:
    """Two releases of the same ids whose vectors have nothing to do with each other, each index in two pieces."""
    artifacts = ArtifactStore(str(tmp_path_factory.mktemp("spread")), cache=tmp_path_factory.mktemp("spread-cache"))
    builder = Builder(
        artifacts,
        settings=PipelinesSettings(train_ranker=False, index_pieces=HOSTS),
        retrieval=RetrievalSettings(),
        encoder=lambda: HashEncoder(32),
        encoder_uri="hash",
    )
    items = items_of(40)
    turned = [replace(item, title=items[n - 7].title, text=items[n - 7].text) for n, item in enumerate(items)]
    return artifacts, [builder.run(Dataset("tiny", of, log_of())).release for of in (items, turned)]


class Deployed:
    """A retriever and two hosts, each with its own releases, over one store and board; calls pickle on their way."""

    def __init__(self, artifacts: ArtifactStore, pool: ThreadPoolExecutor) -> None:
        self._artifacts, self.store, self.board = artifacts, MemoryStore(), MemoryBoard()
        self.hosts = [self._holder(Spread(HOSTS, own=n), lambda bundle: bundle.share) for n in range(HOSTS)]
        clients = [self._client(ShareSearcher(host.ready, pool)) for host in self.hosts]
        self.searcher = self._holder(Spread(HOSTS, ask=ShardHosts(clients).ask), lambda bundle: bundle.engine)
        self.retriever = EngineRetriever(self.searcher.bundle, ThreadPoolExecutor(2))

    def _holder(self, spread: Spread, warm) -> ReleaseHolder:
        of = {"tenants": ("main",), "settings": RetrievalSettings(), "board": self.board, "encoder": "hash"}
        return ReleaseHolder(self.store, lambda tenant: self._artifacts, warm=warm, spread=spread, **of)

    @staticmethod
    def _client(searcher: ShareSearcher) -> IndexShardClient:
        async def many(members):
            return "replica", await each(members, searcher.search)

        return IndexShardClient(LocalHandle(SimpleNamespace(search_many=many)), min_replicas=1, max_waiting=256)

    def everyone(self) -> list[ReleaseHolder]:
        return [*self.hosts, self.searcher]


@pytest.fixture
async def deployed(made, monkeypatch) -> AsyncIterator[Deployed]:
    from models.retrieval import engine, sources

    for module in (engine, sources):
        monkeypatch.setattr(
            module, "DENSE_BELOW", 0
        )  # a small catalog is searched through its index, as a large one is
    artifacts, (first, _) = made
    pool = ThreadPoolExecutor(2)
    here = Deployed(artifacts, pool)
    await Publisher(here.store, here.board, tenant="main").swap(first)
    yield here
    for holder in here.everyone():
        await holder.stop()
    pool.shutdown(wait=False)


def alone(made) -> dict[str, list[tuple[list[int], np.ndarray]]]:
    """What one process that holds the whole index answers, by release."""
    artifacts, releases = made
    found = {}
    for release in releases:
        engine = load_bundle(artifacts, release, settings=RetrievalSettings()).engine
        found[release.release_id] = [(c.rows.tolist(), c.scores) for c in map(engine.retrieve, QUERIES)]
    return found


async def test_lists_under_load_are_of_one_release_each_through_five_swaps(deployed: Deployed, made) -> None:
    _, releases = made
    wanted = alone(made)
    assert wanted[releases[0].release_id][0][0] != wanted[releases[1].release_id][0][0]
    for holder in deployed.everyone():
        # Hosts look less often than the retriever: they answer for what they have prepared until they see it served.
        await holder.start(poll_s=0.02 if holder is deployed.searcher else 0.25, wait_s=20)
        await holder.report()
    answers: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def ask(turn: int) -> None:
        while not stopped.is_set():
            pinned = deployed.searcher.current("main")
            number = turn = (turn + 1) % len(QUERIES)
            found = await deployed.retriever.retrieve(StageCall("main", pinned, 5000.0), QUERIES[number])
            rows, scores = wanted[pinned][number]
            assert found.rows.tolist() == rows and np.array_equal(found.scores, scores)
            assert not found.incomplete
            answers[pinned] += 1

    async def swap() -> None:
        try:
            for number in range(1, 6):
                publisher = Publisher(deployed.store, deployed.board, tenant="main")
                done = await publisher.swap(releases[number % 2])
                assert done.moved and done.replicas == HOSTS + 1
                await asyncio.sleep(0.3)
        finally:
            stopped.set()

    await asyncio.gather(swap(), *(ask(turn) for turn in range(4)))
    assert all(answers[release.release_id] > 5 for release in releases)


async def test_the_pointer_does_not_move_before_every_host_has_prepared(deployed: Deployed, made) -> None:
    _, (first, second) = made
    for holder in deployed.everyone():
        await holder.refresh(strict=True)
        await holder.report()
    slow = deployed.hosts[1]

    async def turn(seconds: float) -> None:
        for holder in deployed.everyone():
            if holder is not slow:
                await holder.prepare()
            await holder.report()
        await asyncio.sleep(0.01)

    of = {"tenant": "main", "patience": Patience(replicas_s=0.3), "sleep": turn}
    with pytest.raises(PublishError):
        await Publisher(deployed.store, deployed.board, **of).swap(second)
    assert {holder.current("main") for holder in deployed.everyone()} == {first.release_id}
    slow = None
    assert (await Publisher(deployed.store, deployed.board, **of).swap(second)).replicas == HOSTS + 1


async def test_a_host_that_lacks_the_pinned_release_leaves_its_rows_out_and_never_takes_another_s(
    deployed: Deployed, made
) -> None:
    artifacts, (first, second) = made
    for holder in deployed.everyone():
        await holder.refresh(strict=True)
    # A host that was started again after the pointer moved knows the new release only.
    await deployed.store.move_release("main", second.to_json(), expected_epoch=1)
    await deployed.searcher.refresh(strict=True)
    await deployed.hosts[0].refresh(strict=True)
    deployed.hosts[1]._held["main"].clear()
    await deployed.hosts[1].refresh(strict=True)
    found = await deployed.retriever.retrieve(StageCall("main", first.release_id, 5000.0), QUERIES[0])
    assert found.incomplete and len(found)
    bundle = load_bundle(artifacts, first, settings=RetrievalSettings())
    everything = bundle.engine.retrieve(replace(QUERIES[0], n=len(bundle.catalog)))
    known = dict(zip(everything.rows.tolist(), everything.scores.tolist(), strict=True))
    assert all(np.isclose(known[row], score) for row, score in zip(found.rows.tolist(), found.scores, strict=True))
