"""A node that dies in the middle of an embedding job costs its open blocks, not the job."""

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DRIVER = """
    import json, os, sys, tempfile, time
    from functools import partial
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from models.artifacts import ArtifactStore
    from models.catalog import CATALOG_FILE, Item, write_catalog
    from models.encoder import HashEncoder
    from pipelines.embedding.assemble import Embedder
    from pipelines.embedding.blocks import EncoderSpec
    from pipelines.embedding.runners import InlineRunner, RayRunner, WorkerPlace
    from pipelines.embedding.settings import EmbeddingSettings

    folder = Path(sys.argv[1])

    class Slow(HashEncoder):
        def encode(self, texts):
            if len(texts) > 1:
                with (folder / "encoded").open("a") as log:
                    log.write(f"{ray.get_runtime_context().get_node_id()} {len(texts)}\\n")
                time.sleep(0.5)
            return super().encode(texts)

    def store(name):
        return ArtifactStore(str(folder / name), cache=folder / f"{name}-cache")

    def catalog(artifacts):
        with tempfile.TemporaryDirectory() as made:
            write_catalog([Item(f"i{n}", f"Film {n}") for n in range(12_000)], Path(made) / CATALOG_FILE)
            return artifacts.get(artifacts.put("catalog", Path(made), {}))

    def embed(name, runner, progress):
        artifacts = store(name)
        with tempfile.TemporaryDirectory() as made:
            facts = Embedder(artifacts, EncoderSpec("hash"), runner).embed(catalog(artifacts), Path(made), progress)
            return artifacts.put("embeddings", Path(made), facts)

    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    head = ray.get_runtime_context().get_node_id()
    lost = []

    def progress(step, done, total):
        if done >= 3 * 1024 and not lost:
            busy = {line.split()[0] for line in (folder / "encoded").read_text().splitlines()} - {head}
            one = next(node for node in nodes if node.node_id in busy)
            lost.append(one.node_id)
            cluster.remove_node(one, allow_graceful=False)

    settings = EmbeddingSettings(workers=2, cpus_per_worker=1.0)
    place = partial(WorkerPlace, str(folder / "ray"), folder / "ray-cache", "main")
    found = embed("ray", RayRunner(place, partial(Slow, 16), settings), progress)
    left = [n["NodeID"] for n in ray.nodes() if n["Alive"]]
    ray.shutdown()
    wanted = embed("inline", InlineRunner(partial(HashEncoder, 16)), lambda *_: None)
    encoded = [line.split() for line in (folder / "encoded").read_text().splitlines()]
    print(json.dumps({
        "same": found == wanted,
        "lost": lost,
        "dead": [n for n in lost if n not in left],
        "before": sum(node == lost[0] for node, _ in encoded),
        "encoded": sum(int(n) for _, n in encoded),
    }), flush=True)
    cluster.shutdown()
"""


def test_a_node_that_dies_costs_its_open_blocks_and_the_result_is_the_same(run_driver) -> None:
    found = run_driver(DRIVER, timeout_s=220)
    assert found["lost"] and found["dead"] == found["lost"] and found["before"] >= 1
    assert found["same"]
    assert 12_000 <= found["encoded"] <= 12_000 + 3 * 1024
