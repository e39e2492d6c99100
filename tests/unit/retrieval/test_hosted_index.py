"""An index spread over hosts answers as one, keeps filters, and does without a host that is dead."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from models.hosted import (
    HostedIndex,
    HostShare,
    ShardQuestion,
    Spread,
    hosted_index,
    load_share,
    packed,
    shares,
)
from models.index import FlatIndex, write_faiss
from models.index_build import build_faiss
from models.index_port import Hits
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.shards import Shard, ShardedIndex, write_shards
from serve.clients import IndexShardClient
from serve.context import StageCall
from serve.deadline import Deadline, FakeClock
from serve.deployments.batches import each
from serve.errors import ContractViolation, DependencyError
from serve.fakes import FakeIndexShard, LocalHandle
from serve.index_shards import FAILURES, REST_S, ShardHosts, ShareSearcher, asking
from serve.stages import EngineRetriever

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray Serve's own, when the clients first import its exceptions
    import ray.serve.exceptions  # noqa: F401

pytestmark = pytest.mark.timeout(60)

ROWS, DIM = 6000, 16
BOUNDS = (0, 1500, 3100, 3200, ROWS)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    made = np.random.default_rng(0).normal(size=(ROWS, DIM)).astype(np.float32)
    made[3000:3200] = made[1400:1600]  # equal scores on both sides of a border
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.fixture(scope="module", params=["flat", "ivf_flat", "hnsw"])
def folder(request, vectors, tmp_path_factory):
    """An index in four pieces, as `build` writes it."""
    to = tmp_path_factory.mktemp(request.param)
    shards = [Shard(f"{n}.faiss", start, stop) for n, (start, stop) in enumerate(itertools.pairwise(BOUNDS))]
    for shard in shards:
        part = np.ascontiguousarray(vectors[shard.start : shard.stop])
        write_faiss(build_faiss(part, kind=request.param).index, to, name=shard.name)
    write_shards(shards, to)
    return to


def travelled(value):
    return pickle.loads(pickle.dumps(value))


def asker(shares: list[HostShare], asked: list[int] | None = None):
    def ask(release_id: str, questions: Mapping[int, ShardQuestion]) -> Mapping[int, Hits]:
        if asked is not None:
            asked.extend(questions)
        return {host: shares[host].answer(travelled(question)) for host, question in questions.items()}

    return ask


def masks():
    rng = np.random.default_rng(3)
    border, first_only = np.zeros(ROWS, bool), np.zeros(ROWS, bool)
    border[1495:1505] = True
    first_only[:1200] = True
    some = [rng.random(ROWS) < share for share in (0.0005, 0.04, 0.3, 0.9, 0.995)]
    return [None, np.ones(ROWS, bool), *some, border, first_only]


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 7])
def test_hosts_answer_row_for_row_as_the_same_pieces_in_one_process(folder, vectors, hosts: int) -> None:
    from models.index import load_faiss

    one = load_faiss(folder, vectors)
    assert isinstance(one, ShardedIndex)
    held = [load_share(folder, vectors, Spread(hosts, own=n)) for n in range(hosts)]
    spread = hosted_index(folder, vectors, "r-1", Spread(hosts, ask=asker(held)))
    for query in np.random.default_rng(5).normal(size=(20, DIM)).astype(np.float32):
        for n, allowed in itertools.product((0, 1, 50, 400), masks()):
            rows, scores = spread.search(query, n, allowed=allowed)
            wanted_rows, wanted_scores = one.search(query, n, allowed=allowed)
            assert rows.tolist() == wanted_rows.tolist()
            assert np.array_equal(scores, wanted_scores)
            assert allowed is None or allowed[rows].all()


def test_exact_pieces_give_what_one_exact_index_gives(vectors) -> None:
    exact = FlatIndex(vectors)
    held = [HostShare([(a, b, FlatIndex(vectors[a:b]))]) for a, b in itertools.pairwise(BOUNDS)]
    spread = HostedIndex("r-1", list(itertools.pairwise(BOUNDS)), asker(held), exact=exact)
    for query, allowed in itertools.product(vectors[:20], masks()):
        rows, scores = spread.search(query, 30, allowed=allowed)
        wanted_rows, wanted_scores = exact.search(query, 30, allowed=allowed)
        assert np.allclose(scores, wanted_scores, atol=1e-6)
        # Of rows that tie with the last one, any may be there.
        clear = scores > scores[-1] + 1e-6
        assert set(rows[clear]) == set(wanted_rows[clear])


def test_an_index_in_one_piece_is_held_by_one_host(vectors, tmp_path) -> None:
    write_faiss(build_faiss(vectors, kind="flat").index, tmp_path)
    asked: list[int] = []
    held = [load_share(tmp_path, vectors, Spread(2, own=n)) for n in range(2)]
    spread = hosted_index(tmp_path, vectors, "r-1", Spread(2, ask=asker(held, asked)))
    rows = spread.search(vectors[7], 5)[0].tolist()
    assert rows == FlatIndex(vectors).search(vectors[7], 5)[0].tolist() and len(set(asked)) == 1


def test_a_host_none_of_whose_rows_is_allowed_is_not_asked(vectors) -> None:
    asked: list[int] = []
    held = [HostShare([(a, b, FlatIndex(vectors[a:b]))]) for a, b in itertools.pairwise(BOUNDS)]
    spread = HostedIndex("r-1", list(itertools.pairwise(BOUNDS)), asker(held, asked), exact=FlatIndex(vectors))
    allowed = np.zeros(ROWS, bool)
    allowed[:1400] = True
    spread.search(vectors[0], 5, allowed=allowed)
    assert asked == [0]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.5, 1.0])
def test_a_mask_travels_small_and_arrives_the_same(share: float) -> None:
    mask = np.random.default_rng(1).random(100_001) >= share
    sent = packed(mask)
    arrived = np.ones(len(mask), bool) if sent is None else travelled(sent).mask()
    assert np.array_equal(arrived, mask)
    assert len(pickle.dumps(sent)) < len(mask) / 7


def test_pieces_are_dealt_out_evenly_and_in_order() -> None:
    pieces = [Shard(str(n), n, n + 1) for n in range(7)]
    dealt = shares(pieces, 3)
    assert [s for some in dealt for s in some] == pieces and {len(some) for some in dealt} == {2, 3}


def test_a_searcher_is_no_host_and_a_host_no_searcher(folder, vectors) -> None:
    with pytest.raises(ValueError, match="no share"):
        load_share(folder, vectors, Spread(2, ask=lambda *_: {}))
    with pytest.raises(ValueError, match="a host does not search"):
        hosted_index(folder, vectors, "r-1", Spread(2, own=1))


# --- under a deadline, through the clients ---------------------------------------------------------------------------


class Cluster:
    """Four hosts behind clients, and worker threads that search."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.clock = FakeClock()
        self.spans = list(itertools.pairwise(BOUNDS))
        self.shards = [FakeIndexShard(HostShare([(a, b, FlatIndex(vectors[a:b]))])) for a, b in self.spans]
        clients = [self._client(shard) for shard in self.shards]
        self.hosts = ShardHosts(clients, clock=self.clock)
        self.index = HostedIndex("r-1", self.spans, self.hosts.ask, exact=FlatIndex(vectors))
        self.pool = ThreadPoolExecutor(4)

    @staticmethod
    def _client(shard: FakeIndexShard) -> IndexShardClient:
        async def many(members):
            return "replica", await each(members, shard.search)

        return IndexShardClient(LocalHandle(SimpleNamespace(search_many=many)), min_replicas=1, max_waiting=64)

    async def search(self, query: np.ndarray, n: int = 10, *, ms: float = 5000.0) -> tuple[list[int], bool]:
        def run() -> tuple[list[int], bool]:
            with asking("main", Deadline.after_ms(ms)) as asked:
                rows = self.index.search(query, n)[0].tolist()
            return rows, bool(asked.missing)

        return await asyncio.get_running_loop().run_in_executor(self.pool, run)


@pytest.fixture
async def cluster(vectors):
    made = Cluster(vectors)
    yield made
    made.pool.shutdown(wait=False)  # its threads wait for this loop


def without(vectors: np.ndarray, query: np.ndarray, span: tuple[int, int]) -> list[int]:
    allowed = np.ones(ROWS, bool)
    allowed[slice(*span)] = False
    return FlatIndex(vectors).search(query, 10, allowed=allowed)[0].tolist()


async def test_many_searches_at_once_get_their_own_answers(cluster, vectors) -> None:
    found = await asyncio.gather(*(cluster.search(vectors[row]) for row in range(0, 1400, 7)))
    pieces = [(a, b, FlatIndex(vectors[a:b])) for a, b in cluster.spans]
    alone = ShardedIndex(pieces, exact=FlatIndex(vectors))
    wanted = [alone.search(vectors[row], 10)[0].tolist() for row in range(0, 1400, 7)]
    assert [rows for rows, _ in found] == wanted and not any(incomplete for _, incomplete in found)


async def test_a_dead_host_costs_its_rows_only_and_is_back_when_it_answers(cluster, vectors) -> None:
    cluster.shards[1].trouble.error = DependencyError("gone")
    for _ in range(FAILURES):
        assert await cluster.search(vectors[9]) == (without(vectors, vectors[9], cluster.spans[1]), True)
    calls = cluster.shards[1].trouble.calls
    assert (await cluster.search(vectors[9]))[1] is True
    assert cluster.shards[1].trouble.calls == calls, "a host that failed again and again is not asked for a moment"
    cluster.shards[1].trouble.error = None
    cluster.clock.advance(REST_S + 0.1)
    assert await cluster.search(vectors[9]) == (FlatIndex(vectors).search(vectors[9], 10)[0].tolist(), False)


async def test_a_host_that_hangs_leaves_time_for_everything_else(cluster, vectors) -> None:
    cluster.shards[2].trouble.hangs = True
    started = asyncio.get_running_loop().time()
    rows, incomplete = await cluster.search(vectors[9], ms=400.0)
    assert incomplete and rows == without(vectors, vectors[9], cluster.spans[2])
    assert asyncio.get_running_loop().time() - started < 0.4


async def test_a_host_that_hangs_costs_a_retrieval_its_time_once_however_many_sources_search(cluster, vectors) -> None:
    cluster.shards[2].trouble.hangs = True

    def run() -> float:
        with asking("main", Deadline.after_ms(800.0)) as asked:
            for _ in range(4):
                cluster.index.search(vectors[9], 10)
            assert asked.missing == {2}
            return asked.deadline.remaining_ms()

    left = await asyncio.get_running_loop().run_in_executor(cluster.pool, run)
    assert cluster.shards[2].trouble.calls == 1 and left > 200.0


async def test_a_search_without_a_deadline_is_a_mistake_of_ours(cluster, vectors) -> None:
    with pytest.raises(ContractViolation):
        await asyncio.get_running_loop().run_in_executor(cluster.pool, cluster.index.search, vectors[0], 5)


# --- through the retriever -------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(monkeypatch):
    """Let a small catalog be searched through its index, as a large one is."""
    from models.retrieval import engine, sources

    for module in (engine, sources):
        monkeypatch.setattr(module, "DENSE_BELOW", 0)


async def test_a_retriever_over_hosts_gives_the_candidates_of_one_that_holds_the_index(tiny, indexed) -> None:
    host = replace(tiny.bundle, spread=Spread(1, own=0))
    with ThreadPoolExecutor(2) as pool:
        searcher = ShareSearcher(lambda *_: host, pool)
        hosts = ShardHosts([searcher])
        spread = replace(tiny.bundle, spread=Spread(1, ask=hosts.ask))
        whole = replace(tiny.bundle)
        call = StageCall("main", tiny.release.release_id, 5000.0)
        for filters in ({}, {"genres": AttributeFilter(any_of=("Comedy",))}):
            seeds = tuple(tiny.bundle.catalog.item_ids(np.arange(3, dtype=np.int32)))
            query = RetrievalQuery(n=20, now_ms=0, seed_items=seeds, filters=filters)
            with ThreadPoolExecutor(1) as threads:
                found = await EngineRetriever(lambda *_: spread, threads).retrieve(call, query)
                wanted = await EngineRetriever(lambda *_: whole, threads).retrieve(call, query)
            assert found.rows.tolist() == wanted.rows.tolist() and np.array_equal(found.scores, wanted.scores)
            assert not found.incomplete
