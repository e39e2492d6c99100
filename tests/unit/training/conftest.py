import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.config import load_settings
from cluster.workspace import Workspace
from models.catalog import Item, ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from pipelines.dataset import Dataset, write_dataset

HOUR_MS = 3_600_000


def films(count, *, genres=True, years=True):
    return [
        Item(
            f"i{k}",
            f"film {k}",
            labels={"genre": (f"g{k % 5}",)} if genres else {},
            numbers={"year": 1980.0 + k % 30} if years else {},
        )
        for k in range(count)
    ]


@pytest.fixture
def make_catalog(tmp_path):
    def make(n, *, attributes=True):
        write_catalog(films(n, genres=attributes, years=attributes), tmp_path / "catalog.arrow")
        catalog = ItemCatalog(tmp_path)
        return catalog, HashEncoder(16).encode([catalog.document(r) for r in range(n)])

    return make


def log_of(rows):
    """Rows of (user, item, hour)."""
    return EventLog(
        np.array([r[0] for r in rows], object),
        np.array([r[1] for r in rows], object),
        np.full(len(rows), EventType.rating, np.uint8),
        np.full(len(rows), 4.0, np.float32),
        np.array([r[2] * HOUR_MS for r in rows], np.int64),
    ).sorted_by_time()


@pytest.fixture
def make_log():
    return log_of


@pytest.fixture
def patterned_log():
    """Users who walk a genre: five items apart is what they take next, popularity aside."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(120):
        genre, start = int(rng.integers(5)), int(rng.integers(100))
        items = [(genre + 5 * ((start + step) % 20)) % 100 for step in range(14)]
        rows += [(f"u{user}", f"i{item}", 24 * user + step) for step, item in enumerate(items)]
    return log_of(rows)


@pytest.fixture
def make_taste_log():
    """Users who take every second item from one genre of their own: what features see and no source knows."""

    def make(users):
        rng = np.random.default_rng(5)
        rows = []
        for user in range(users):
            own = rng.permutation(np.arange(int(rng.integers(5)), 100, 5))[:7]
            items = np.stack([own, rng.permutation(100)[:7]], axis=1).ravel().tolist()
            rows += [(f"u{user}", f"i{item}", 24 * user + step) for step, item in enumerate(items)]
        return log_of(rows)

    return make


@pytest.fixture
def place(tmp_path, monkeypatch, free_port):
    """Settings of an empty state folder: a quick training, vectors by the shipped fake, and nothing that runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Workspace, "encoder", lambda self, *, threads=None: HashEncoder(16))
    return [
        f"cluster.state={tmp_path / 'state'}",
        f"serve.http_port={free_port}",
        "cluster.dataset=taste",
        "models.encoder.dimension=16",
        "pipelines.canary={min_overlap: 0}",
        "pipelines.training={train_positions: 4, validation_positions: 2, epochs: 1, list_size: 60, "
        "bootstrap_rounds: 200, min_examples: 10}",
    ]


def _imported(place: list[str], log: EventLog, *, items: int = 100, years: bool = True) -> Workspace:
    workspace = Workspace(load_settings("local", place, environ={}))
    workspace.data.mkdir(parents=True, exist_ok=True)
    write_dataset(Dataset("taste", films(items, years=years), log), workspace.dataset_folder("taste"))
    return workspace


@pytest.fixture(scope="session")
def imported() -> Callable[..., Workspace]:
    """Return what puts films and a log into a state folder, as the data set of its settings."""
    return _imported


def _run(place: list[str], command: str, *options: str, sets: Iterable[str] = ()) -> tuple[Result, dict[str, Any]]:
    named = [part for override in [*place, *sets] for part in ("--set", override)]
    result = CliRunner().invoke(app, [command, *named, "--json", *options])
    return result, json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[Result, dict[str, Any]]]:
    """Return what runs a command of `raycommend` under settings, and gives its result and its answer."""
    return _run


FORKS = """
import json, os, sys, traceback
import torch, torch.distributed
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertTokenizer
from pipelines.training import text_workers, train

def run(script, arguments, out, err):
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv, code = [script, *arguments], 1
    try:
        exec(compile(open(script).read(), script, "exec"), {"__name__": "__main__"})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    children = []
    for command in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            run(**command)
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a process of a script ended; a negative code is the signal that did it."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def forks() -> Iterator[Callable[..., list[Ended]]]:
    """Return what runs a script once per list of arguments, side by side, each in a process of its own.

    All are forked off one process that has imported torch and the training and computed nothing, so it has no threads.
    """
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **one_thread, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        text=True,
    )
    assert server.stdin is not None and server.stdout is not None
    ready = server.stdout.readline()
    assert ready == "ready\n"

    def run(script: Path, *calls: list[str]) -> list[Ended]:
        said = [{"out": f"{script}.out{n}", "err": f"{script}.err{n}"} for n in range(len(calls))]
        commands = [
            {"script": str(script), "arguments": call, **files} for call, files in zip(calls, said, strict=True)
        ]
        print(json.dumps(commands), file=server.stdin, flush=True)
        codes = json.loads(server.stdout.readline())
        return [
            Ended(code, *(Path(files[name]).read_text() for name in ("out", "err")))
            for code, files in zip(codes, said, strict=True)
        ]

    yield run
    server.communicate(timeout=10)
