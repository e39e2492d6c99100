"""The Encoder deployment under Ray Serve with real models: a swap to another encoder while queries are embedded."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.prepare import build_release
from cluster.workspace import Workspace
from models.encoder import SentenceTransformerEncoder
from models.progress import silent
from models.releases import Release
from models.store.board import RedisBoard
from models.store.redis_store import RedisStore
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner
from pipelines.publish import Publisher
from serve.deployments.replica import STORE_URL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DRIVER = """
    import asyncio, json, os, sys
    from pathlib import Path

    os.environ.update(RAY_SERVE_THROUGHPUT_OPTIMIZED="1", RAY_USAGE_STATS_ENABLED="0")
    import numpy as np
    import ray
    from ray import serve as ray_serve

    from models.encoder import SentenceTransformerEncoder
    from models.releases import Release
    from models.retrieval.settings import RetrievalSettings
    from models.store.board import RedisBoard
    from models.store.redis_store import RedisStore
    from models.text_space import EncoderPlace
    from pipelines.publish import Publisher, PublishError
    from serve.app import deployment
    from serve.clients import QueryEncoderClient
    from serve.context import StageCall
    from serve.deployments.replica import STORE_URL, ReplicaConfig
    from serve.deployments.stages import QueryEncoderDeployment
    from serve.settings import ServeSettings

    folder = Path(sys.argv[1])
    wish = json.loads((folder / "wish.json").read_text())
    releases = [Release.from_json(text) for text in wish["releases"]]
    first, second, gone = releases
    settings = ServeSettings.model_validate({"consumer": {"enabled": False}, "release_poll_s": 0.2})
    config = ReplicaConfig(
        settings=settings, retrieval=RetrievalSettings(), artifacts_url=wish["url"], artifact_cache=wish["cache"],
        records_folder=str(folder / "records"), package_root=wish["root"],
        encoders=EncoderPlace(wish["uris"][0], Path(wish["uris"][0]), folder),
    )
    texts = ("film about water", "water", "film")
    wanted = {
        release.release_id: SentenceTransformerEncoder(Path(uri)).encode(texts)
        for release, uri in zip((first, second), wish["uris"])
    }

    async def run(handle):
        client = QueryEncoderClient(handle, min_replicas=1, max_waiting=64)
        store, board = RedisStore(os.environ[STORE_URL]), RedisBoard(os.environ[STORE_URL])
        counts, stopped, facts = {first.release_id: 0, second.release_id: 0, "wrong": 0}, asyncio.Event(), {}

        async def load(number):
            while not stopped.is_set():
                text, _ = await store.read_release("main")
                pinned, number = Release.from_json(text).release_id, (number + 1) % len(texts)
                found = await client.encode(StageCall("main", pinned, 5000.0), texts[number])
                other = wanted[pinned][number]
                same = found.shape == other.shape and float(found @ other) > 0.9999
                counts[pinned if same else "wrong"] += 1

        async def swap():
            publisher, facts["prepared"] = Publisher(store, board, tenant="main"), []
            try:
                for release in (second, first, second):
                    await asyncio.sleep(1.0)
                    facts["prepared"].append((await publisher.swap(release)).replicas)
                try:
                    await publisher.swap(gone)
                except PublishError as error:
                    facts["refused"] = str(error)
                await asyncio.sleep(0.5)
            finally:
                stopped.set()

        await asyncio.gather(swap(), *(load(n) for n in range(2)))
        await store.close()
        await board.close()
        return {**facts, "counts": list(counts.values())}

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray_serve.start(proxy_location="Disabled")
    app = deployment(QueryEncoderDeployment, settings.encoder).bind(config)
    handle = ray_serve.run(app, name="encoder", route_prefix=None)
    with asyncio.Runner() as runner:
        facts = runner.run(run(handle))
        ray_serve.shutdown()  # ends what the handle does on that loop
    ray.shutdown()
    print(json.dumps(facts), flush=True)
"""


def built(place: Any, uri: str, folder: Path, dimension: int) -> Release:
    """Build a release that says it was made by `uri`, with the model in `folder`."""
    models = place.settings.models
    encoder = models.encoder.model_copy(update={"uri": uri, "dimension": dimension})
    settings = place.settings.model_copy(update={"models": models.model_copy(update={"encoder": encoder})})
    workspace = Workspace(settings)
    runner = InlineRunner(lambda: SentenceTransformerEncoder(folder))
    embedder = Embedder(workspace.artifacts(), workspace.encoder_spec(), runner, None)
    return build_release(settings, place.dataset, embedder=embedder, progress=silent).release


@pytest.mark.heavy
def test_queries_are_embedded_by_the_encoder_of_their_release_through_swaps_and_a_refused_one(
    place, run_driver, tmp_path: Path, tiny_bert
) -> None:
    words = ["film", "water", "about", *(str(n) for n in range(40))]
    small = tiny_bert(tmp_path / "small", words, initializer_range=0.5)
    large = tiny_bert(tmp_path / "large", words, hidden=24, initializer_range=0.5)
    made = [built(place, str(small), small, 16), built(place, str(large), large, 24)]
    made.append(built(place, str(tmp_path / "gone"), large, 24))

    async def publish() -> None:
        store, board = RedisStore(os.environ[STORE_URL]), RedisBoard(os.environ[STORE_URL])
        await Publisher(store, board, tenant="main").swap(made[0])
        await store.close()
        await board.close()

    asyncio.run(publish())
    wish = {
        "releases": [release.to_json() for release in made],
        "uris": [str(small), str(large)],
        "url": place.settings.artifacts_url,
        "cache": str(Workspace(place.settings).artifact_cache),
        "root": str(Path(__file__).resolve().parents[2]),
    }
    (tmp_path / "wish.json").write_text(json.dumps(wish))
    found = run_driver(DRIVER, timeout_s=200)
    assert found["prepared"] == [1, 1, 1]
    ours, theirs, wrong = found["counts"]
    assert wrong == 0 and ours > 5 and theirs > 5
    assert f"the encoder {tmp_path / 'gone'} cannot be fetched" in found["refused"]
