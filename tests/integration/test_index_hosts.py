"""A vector index spread over two nodes by Ray Serve: the same lists, a killed host, swaps under load."""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.workspace import Workspace
from models.catalog import Item
from models.store.board import RedisBoard
from models.store.redis_store import RedisStore
from pipelines.publish import Publisher
from serve.deployments.replica import STORE_URL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(340)]

DRIVER = """
    import asyncio, json, os, sys, time
    from dataclasses import replace
    from pathlib import Path

    os.environ.update(RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_USAGE_STATS_ENABLED="0")
    import numpy as np
    import ray
    from ray import serve as ray_serve
    from ray._private.state import actors
    from ray.cluster_utils import Cluster

    from models.bundle import load_bundle
    from models.releases import Release
    from models.retrieval.query import AttributeFilter, RetrievalQuery
    from models.retrieval.settings import RetrievalSettings
    from models.store.board import RedisBoard
    from models.store.redis_store import RedisStore
    from models.artifacts import ArtifactStore
    from models.text_space import EncoderPlace
    from pipelines.publish import Publisher
    from serve.app import deployment
    from serve.context import StageCall
    from serve.deployments.replica import STORE_URL, ReplicaConfig
    from serve.errors import ReleaseMissing
    from serve.deployments.stages import IndexShardDeployment, RetrieverDeployment
    from serve.settings import ServeSettings

    folder = Path(sys.argv[1])
    wish = json.loads((folder / "wish.json").read_text())
    releases = [Release.from_json(text) for text in wish["releases"]]
    settings = ServeSettings.model_validate({
        "index_shards": {"hosts": 2, "host": {"num_cpus": 0.5}},
        "retriever": {"threads": 4},
        "consumer": {"enabled": False},
        "release_poll_s": 0.2,
    })
    config = ReplicaConfig(
        settings=settings, retrieval=RetrievalSettings(), artifacts_url=wish["url"], artifact_cache=wish["cache"],
        records_folder=str(folder / "records"), package_root=wish["root"],
        encoders=EncoderPlace("hash", folder, folder),
    )
    artifacts = ArtifactStore(wish["url"], cache=Path(wish["cache"]))
    engines = {r.release_id: load_bundle(artifacts, r, settings=config.retrieval).engine for r in releases}
    queries = [
        RetrievalQuery(n=40, now_ms=0, seed_items=(f"i{n:02}",), filters=filters)
        for n in range(5) for filters in ({}, {"genre": AttributeFilter(any_of=("Comedy",))})
    ]
    wanted = {name: [engine.retrieve(q) for q in queries] for name, engine in engines.items()}
    first, second = (r.release_id for r in releases)

    def replicas(name):
        wanted_name = f"#{name}#"
        return [a for a in actors().values() if wanted_name in a["Name"] and a["State"] == "ALIVE"]

    def same(found, release, number):
        other = wanted[release][number]
        return found.rows.tolist() == other.rows.tolist() and np.array_equal(found.scores, other.scores)

    async def ask(handle, release, number, ms=3000.0):
        _, [found] = await handle.retrieve_many.remote([(StageCall("main", release, ms), queries[number])])
        return found

    async def run(handle):
        facts = {}
        answers = [await ask(handle, first, n) for n in range(len(queries))]
        facts["same"] = all(same(a, first, n) for n, a in enumerate(answers))
        facts["incomplete"] = any(a.incomplete for a in answers)
        facts["nodes"] = len({a["Address"]["NodeID"] for n in (0, 1) for a in replicas(f"IndexShard{n}")})

        # A host dies: its rows are missing, everything else is there; Serve starts it again, and lists are whole.
        [victim] = replicas("IndexShard1")
        ray.kill(ray.get_actor(victim["Name"], namespace="serve"), no_restart=True)
        died, lost, failed = time.monotonic(), 0, 0
        while True:
            found = await ask(handle, first, 0)
            if isinstance(found, Exception) or not len(found):
                failed += 1
            elif found.incomplete:
                lost += 1
            elif lost and same(found, first, 0):
                break
            if time.monotonic() - died > 90:
                break
            await asyncio.sleep(0.05)
        facts["lost"], facts["failed"] = lost, failed
        facts["back"] = not found.incomplete and same(found, first, 0)

        # Swaps while lists are asked for: each is of the release it was pinned to.
        store, board = RedisStore(os.environ[STORE_URL]), RedisBoard(os.environ[STORE_URL])
        counts, stopped = {first: 0, second: 0, "wrong": 0}, asyncio.Event()

        async def load(number):
            while not stopped.is_set():
                text, _ = await store.read_release("main")
                pinned = Release.from_json(text).release_id
                number = (number + 1) % len(queries)
                found = await ask(handle, pinned, number)
                if isinstance(found, ReleaseMissing):
                    continue  # the retriever has not seen the pointer move yet; an ingress pins the release before
                good = not isinstance(found, Exception) and not found.incomplete and same(found, pinned, number)
                counts[pinned if good else "wrong"] += 1

        async def swap():
            prepared = []
            try:
                for release in (releases[1], releases[0], releases[1]):
                    done = await Publisher(store, board, tenant="main").swap(release)
                    prepared.append(done.replicas)
                    await asyncio.sleep(1.5)
            finally:
                stopped.set()
            return prepared

        prepared, *_ = await asyncio.gather(swap(), *(load(n) for n in range(3)))
        facts["prepared"] = prepared
        facts["counts"] = [counts[first], counts[second], counts["wrong"]]
        await store.close()
        await board.close()
        return facts

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    ray_serve.start(proxy_location="Disabled")
    hosts = [
        deployment(IndexShardDeployment, settings.index_shards.host, name=f"IndexShard{n}").bind(config, n)
        for n in range(2)
    ]
    handle = ray_serve.run(
        deployment(RetrieverDeployment, settings.retriever).bind(config, *hosts), name="spread", route_prefix=None
    )
    with asyncio.Runner() as runner:
        facts = runner.run(run(handle))
        ray_serve.shutdown()  # ends what the handle does on that loop
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(facts), flush=True)
"""


@pytest.mark.heavy
def test_hosts_on_two_nodes_give_the_lists_of_one_process_survive_a_kill_and_swap(
    place, run_driver, tmp_path: Path
) -> None:
    # Below twenty thousand items no index is asked.
    genres = ("Comedy", "Drama")
    items = [Item(f"i{n:02}", f"Film {n} of {n % 97}", labels={"genre": (genres[n % 2],)}) for n in range(20_100)]
    settings = place.settings.model_copy(
        update={"pipelines": place.settings.pipelines.model_copy(update={"index_pieces": 3})}
    )
    place.settings = settings
    place.dataset = replace(place.dataset, items=items)
    first = place.build().release
    turned = [replace(item, title=items[n - 7].title) for n, item in enumerate(items)]
    place.dataset = replace(place.dataset, items=turned)
    second = place.build().release
    assert Workspace(settings).artifacts().meta(first.artifacts["index"])["shards"] == 3

    async def publish() -> None:
        store, board = RedisStore(os.environ[STORE_URL]), RedisBoard(os.environ[STORE_URL])
        await Publisher(store, board, tenant="main").swap(first)
        await store.close()
        await board.close()

    asyncio.run(publish())
    wish = {
        "releases": [first.to_json(), second.to_json()],
        "url": settings.artifacts_url,
        "cache": str(Workspace(settings).artifact_cache),
        "root": str(Path(__file__).resolve().parents[2]),
    }
    (tmp_path / "wish.json").write_text(json.dumps(wish))
    found = run_driver(DRIVER, timeout_s=300)
    assert found["same"] and not found["incomplete"]
    assert found["nodes"] == 2, "the hosts are on one node"
    assert found["lost"] >= 1 and found["failed"] == 0 and found["back"]
    assert found["prepared"] == [3, 3, 3]
    ours, theirs, wrong = found["counts"]
    assert wrong == 0 and ours > 10 and theirs > 10
