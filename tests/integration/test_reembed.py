"""Embedding with Ray Data for real: actors that die, a job that is killed, files of every kind."""

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

    class Slow(HashEncoder):
        def __init__(self, dimension, folder, mode):
            super().__init__(dimension)
            self.folder, self.mode = folder, mode

        def encode(self, texts):
            marker = self.folder / "died"
            if self.mode == "die" and len(texts) > 1 and not marker.exists():
                marker.touch()
                os._exit(1)
            with (self.folder / "encoded").open("a") as log:
                log.write(f"{len(texts)}\\n")
            time.sleep(0.3)
            return super().encode(texts)

    settings = load_settings("local", [f"cluster.state={Path(sys.argv[1]) / 'state'}"], environ=None)
    with job_ray(settings):
        for mode, name in zip(sys.argv[2::2], sys.argv[3::2]):
            folder = Path(sys.argv[1]) / name
            folder.mkdir(exist_ok=True)
            url, cache = str(folder / "artifacts"), folder / "cache"
            artifacts = ArtifactStore(url, cache=cache)
            with tempfile.TemporaryDirectory() as made:
                write_catalog([Item(f"i{n}", f"Film {n}") for n in range(10_000)], Path(made) / CATALOG_FILE)
                catalog = artifacts.get(artifacts.put("catalog", Path(made), {}))
            encoder = partial(Slow, 16, folder, mode)
            runner = RayRunner(partial(WorkerPlace, url, cache, "main"), encoder, EmbeddingSettings())
            with tempfile.TemporaryDirectory() as made:
                progress = lambda step, done, total: print(json.dumps({"done": done, "of": total}), flush=True)
                facts = Embedder(artifacts, EncoderSpec("hash"), runner).embed(catalog, Path(made), progress)
                print(json.dumps({"ref": artifacts.put("embeddings", Path(made), facts)}), flush=True)
"""


class Driver:
    """One process that embeds a catalog once per (mode, name of a folder), in one Ray."""

    def __init__(self, place: Path, *jobs: tuple[str, str]) -> None:
        place.mkdir(exist_ok=True)
        script = place / "driver.py"
        script.write_text(textwrap.dedent(DRIVER))
        self.place = place
        repo = Path(__file__).resolve().parents[2]
        with (place / "log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(script), str(place), *(word for job in jobs for word in job)],
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(repo)},
                text=True,
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                yield json.loads(line)

    def refs(self) -> list[str]:
        found = [str(line["ref"]) for line in self.lines() if "ref" in line]
        self.process.communicate(timeout=60)
        assert self.process.returncode == 0, (self.place / "log").read_text()[-3000:]
        return found

    def encoded(self, name: str) -> list[int]:
        return [int(n) for n in (self.place / name / "encoded").read_text().split() if int(n) > 1]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    return Driver(tmp_path_factory.mktemp("jobs"), ("", "undisturbed"), ("die", "dying"))


@pytest.fixture(scope="module")
def refs(driver: Driver) -> list[str]:
    return driver.refs()


def test_every_block_is_computed_once(driver: Driver, refs: list[str]) -> None:
    assert len(refs) == 2
    assert sorted(driver.encoded("undisturbed")) == [10_000 - 9 * 1024, *[1024] * 9]


def test_an_actor_that_dies_costs_its_block_and_not_the_job(driver: Driver, refs: list[str]) -> None:
    assert refs[1] == refs[0]
    assert (driver.place / "dying" / "died").exists()
    assert sum(driver.encoded("dying")) == 10_000


def test_after_kill_9_a_rerun_repeats_the_open_blocks_at_most_and_gives_the_same(
    refs: list[str], tmp_path: Path
) -> None:
    first = Driver(tmp_path / "killed", ("", "job"))
    for line in first.lines():
        if line["done"] >= 3 * 1024:
            break
    first.kill()
    time.sleep(2.0)  # workers notice that their driver is gone
    second = Driver(tmp_path / "killed", ("", "job"))
    assert second.refs() == refs[:1]
    assert sum(second.encoded("job")) <= 10_000 + 2 * 1024
