"""A state folder with a real store, builds of a small data set in it, and a replica that says what it holds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import prepare, releases
from cluster.config import Settings, load_settings
from cluster.prepare import build_release
from cluster.valkey import start_valkey
from cluster.workspace import Workspace
from models.encoder import HashEncoder
from models.items.change import ItemChange
from models.items.log import RedisItemLog
from models.progress import silent
from models.releases import Release
from models.store.board import RedisBoard, Standing
from pipelines.build import BuildReport
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner
from serve.deployments.replica import STORE_URL

PORT = 16790


@dataclass
class Place:
    """A state folder with a store, and builds of a small data set in it."""

    settings: Settings
    dataset: Dataset

    def build(self) -> BuildReport:
        workspace = Workspace(self.settings)
        embedder = Embedder(
            workspace.artifacts(), workspace.encoder_spec(), InlineRunner(lambda: HashEncoder(32)), None
        )
        return build_release(self.settings, self.dataset, embedder=embedder, progress=silent)

    def change(self, *changes: ItemChange) -> None:
        async def run() -> None:
            log = RedisItemLog(os.environ[STORE_URL])
            for change in changes:
                await log.append_item("main", change)
            await log.close()

        asyncio.run(run())

    def put(self, name: str) -> None:
        self.change(ItemChange("put", name, 1_700_000_000_000, f"Film {name}", "water"))

    def replica(self, *, willing: bool = True) -> Replica:
        return Replica(willing=willing)

    def start(self, program: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Run a Python program in a process of its own; its first argument is the settings."""
        return subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(program), self.settings.model_dump_json(), *arguments],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def numbers(self) -> list[int]:
        async def run() -> list[int]:
            log = RedisItemLog(os.environ[STORE_URL])
            found = [number for number, _ in await log.read_items("main", after=0)]
            await log.close()
            return found

        return asyncio.run(run())


@pytest.fixture
def place(tmp_path: Path, items_of, log_of, monkeypatch) -> Iterator[Place]:
    overrides = {
        "cluster.state": tmp_path / "state",
        "cluster.dataset": "tiny",
        "cluster.store.port": PORT,
        "models.encoder.uri": "hash",
        "models.encoder.dimension": 32,
        "pipelines.train_ranker": False,
    }
    settings = load_settings("local", [f"{n}={v}" for n, v in overrides.items()], environ=None)
    workspace = Workspace(settings)
    dataset = Dataset("tiny", items_of(40), log_of())
    write_dataset(dataset, workspace.dataset_folder())
    server = start_valkey(tmp_path / "store", port=PORT, role="store", password=workspace.store_password())
    for name, value in workspace.secrets().items():
        monkeypatch.setenv(name, value)
    for module in (prepare, releases):
        monkeypatch.setattr(module, "online", lambda settings: True)
    yield Place(settings, dataset)
    server.stop()


class Replica:
    """Says on the board what it holds, in a thread of its own; holds whatever is proposed once it is willing."""

    def __init__(self, *, willing: bool = True) -> None:
        self.willing = willing
        self.asked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Replica:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        board = RedisBoard(os.environ[STORE_URL])
        held: tuple[str, ...] = ()
        while not self._stop.is_set():
            text = await board.proposal("main")
            if text is not None:
                self.asked.set()
                if self.willing:
                    held = (Release.from_json(text).release_id, *held[:1])
            await board.report("main", Standing("r1", held))
            await asyncio.sleep(0.05)
        await board.close()


@pytest.fixture
def run_driver(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return what runs a script in its own process, which may start a Ray, and reads the JSON line it ends with."""

    def run(program: str, *, timeout_s: float) -> dict[str, Any]:
        script = tmp_path / "driver.py"
        script.write_text(textwrap.dedent(program))
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "OMP_NUM_THREADS": "1"},
            timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run
