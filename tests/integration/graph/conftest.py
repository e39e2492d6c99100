"""The real graph: `raycommend up` with Ray, HAProxy, Valkey, FAISS, the trained ranker and vLLM, over HTTP.

Started once for the tests of this folder, from a folder full of packages named like ours, and stopped by Ctrl-C;
nothing may be left running.
"""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from cluster.ledger import Ledger

REPO = Path(__file__).resolve().parents[3]
PORTS = {
    "serve.http_port": 18000,
    "cluster.store.port": 16390,
    "cluster.store.cache_port": 16391,
    "cluster.haproxy.stats_port": 18404,
    "cluster.haproxy.metrics_port": 19101,
    "cluster.haproxy.fallback_port": 18500,
    "cluster.haproxy.replica_port_min": 31100,
    "cluster.haproxy.replica_port_max": 31200,
}
EVERYTHING_ON = ("serve.reason_cache.summaries_ttl_s=3600",)
QUICK_TRAINING = ("pipelines.training.epochs=0", "pipelines.training.train_positions=3")


@dataclass
class Deployment:
    state: Path
    cwd: Path
    settings: list[str]
    program: tuple[str, ...] = (sys.executable, "-m", "cluster.cli")
    process: subprocess.Popen[bytes] | None = None
    url: str = f"http://127.0.0.1:{PORTS['serve.http_port']}"

    def command(self, *words: str) -> list[str]:
        return [*self.program, *words, *self.settings]

    def run(self, *words: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words), cwd=self.cwd, capture_output=True, text=True, timeout=timeout)

    def start(self) -> None:
        name = self.state.parent / f"up-{uuid.uuid4().hex[:6]}"
        with name.with_suffix(".log").open("w") as log, name.with_suffix(".out").open("w") as out:
            self.process = subprocess.Popen(self.command("up", "--json"), cwd=self.cwd, stdout=out, stderr=log)
        said = name.with_suffix(".out")
        while not said.read_text() and self.process.poll() is None:
            time.sleep(0.1)
        assert said.read_text(), f"up ended without an answer: {name.with_suffix('.log').read_text()[-3000:]}"
        assert json.loads(said.read_text())["ok"]

    def elsewhere(self, state: Path) -> "Deployment":
        """Return the same settings for another state folder."""
        settings = [f"cluster.state={state}" if s == f"cluster.state={self.state}" else s for s in self.settings]
        return Deployment(state, self.cwd, settings, program=self.program)

    def recommend(self, **body: object) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/recommend", json=body, timeout=30)

    def events(self, *events: dict[str, object]) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/events", json=list(events), timeout=30)

    def stream(self, **body: object) -> Iterator[tuple[str, dict[str, object]]]:
        headers = {"Accept": "text/event-stream"}
        with httpx.stream("POST", f"{self.url}/v1/recommend", json=body, headers=headers, timeout=90) as response:
            assert response.status_code == 200
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="package")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("graph")
    hostile = root / "hostile"
    for package in ("models", "serve", "cluster", "pipelines", "tests"):
        (hostile / package).mkdir(parents=True)
        (hostile / package / "__init__.py").write_text("raise RuntimeError('a stranger was imported')\n")
    state = root / "state"
    shared = REPO / ".raycommend"
    wanted = {
        **PORTS,
        "cluster.state": state,
        "models.cache": shared / "model-cache",
        # Content-addressed, so a second run finds its embeddings here; never the artifacts a person made.
        "cluster.artifacts_url": shared / "test-artifacts",
    }
    settings = [w for name, value in wanted.items() for w in ("--set", f"{name}={value}")]
    settings += [w for override in (*QUICK_TRAINING, *EVERYTHING_ON) for w in ("--set", override)]
    # Prepared from elsewhere, as an operator would; started from the hostile folder, with `python -P` off our path.
    prepared = Deployment(state, REPO, settings)
    for words in (("import", "movielens-100k"), ("build",)):
        done = prepared.run(*words)
        assert done.returncode == 0, done.stderr[-3000:]
    running = Deployment(state, hostile, settings, program=(str(Path(sys.executable).parent / "raycommend"),))
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=60) == 0
    assert Ledger(state).alive() == [], "Ctrl-C left processes behind"
