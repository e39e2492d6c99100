"""Embedding with Ray Data for real: actors that die, a job that is killed, files of every kind."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DRIVER = """
    import json, os, sys, tempfile, time
    from functools import partial
    from pathlib import Path

    from cluster.config import load_settings
    from cluster.ray_job import job_ray
    from models.artifacts import ArtifactStore
    from models.catalog import CATALOG_FILE, Item, write_catalog
    from models.encoder import HashEncoder
    from pipelines.embedding.assemble import Embedder
    from pipelines.embedding.blocks import EncoderSpec
    from pipelines.embedding.runners import RayRunner, WorkerPlace
    from pipelines.embedding.settings import EmbeddingSettings

    folder, mode = Path(sys.argv[1]), sys.argv[2]

    class Slow(HashEncoder):
        def encode(self, texts):
            marker = folder / "died"
            if mode == "die" and len(texts) > 1 and not marker.exists():
                marker.touch()
                os._exit(1)
            with (folder / "encoded").open("a") as log:
                log.write(f"{len(texts)}\\n")
            time.sleep(0.3)
            return super().encode(texts)

    settings = load_settings("local", [f"cluster.state={folder / 'state'}"], environ=None)
    url, cache = str(folder / "artifacts"), folder / "cache"
    artifacts = ArtifactStore(url, cache=cache)
    with tempfile.TemporaryDirectory() as made:
        write_catalog([Item(f"i{n}", f"Film {n}") for n in range(10_000)], Path(made) / CATALOG_FILE)
        catalog = artifacts.get(artifacts.put("catalog", Path(made), {}))
    with job_ray(settings):
        runner = RayRunner(partial(WorkerPlace, url, cache, "main"), partial(Slow, 16), EmbeddingSettings())
        with tempfile.TemporaryDirectory() as made:
            progress = lambda step, done, total: print(json.dumps({"done": done, "of": total}), flush=True)
            facts = Embedder(artifacts, EncoderSpec("hash"), runner).embed(catalog, Path(made), progress)
            print(json.dumps({"ref": artifacts.put("embeddings", Path(made), facts)}), flush=True)
"""


class Job:
    """One run of the driver in a process of its own."""

    def __init__(self, folder: Path, mode: str = "") -> None:
        folder.mkdir(exist_ok=True)
        script = folder / "driver.py"
        script.write_text(textwrap.dedent(DRIVER))
        self.folder = folder
        repo = Path(__file__).resolve().parents[2]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(script), str(folder), mode],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(repo)},
                text=True,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def lines(self):
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                yield json.loads(line)

    def ref(self) -> str:
        *_, last = self.lines()
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0, (self.folder / "log").read_text()[-3000:]
        return str(last["ref"])

    def encoded(self) -> list[int]:
        return [int(n) for n in (self.folder / "encoded").read_text().split() if int(n) > 1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Job:
    job = Job(tmp_path_factory.mktemp("undisturbed"))
    job.result = job.ref()  # type: ignore[attr-defined]
    return job


def test_every_block_is_computed_once(undisturbed) -> None:
    assert sorted(undisturbed.encoded()) == [10_000 - 9 * 1024, *[1024] * 9]


def test_an_actor_that_dies_costs_its_block_and_not_the_job(undisturbed, tmp_path) -> None:
    job = Job(tmp_path / "dying", "die")
    assert job.ref() == undisturbed.result
    assert (tmp_path / "dying" / "died").exists()
    assert sum(job.encoded()) == 10_000


def test_after_kill_9_a_rerun_repeats_the_open_blocks_at_most_and_gives_the_same(undisturbed, tmp_path) -> None:
    first = Job(tmp_path / "killed")
    for line in first.lines():
        if line["done"] >= 3 * 1024:
            break
    first.kill()
    time.sleep(2.0)  # workers notice that their driver is gone
    second = Job(tmp_path / "killed")
    assert second.ref() == undisturbed.result
    assert sum(second.encoded()) <= 10_000 + 2 * 1024
