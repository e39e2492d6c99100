"""Lists for many users at once: the pipeline of a request, in actors, over the release, into one Parquet file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.config import load_settings
from cluster.prepare import build_release, keep_release
from cluster.workspace import Workspace
from models.encoder import HashEncoder
from models.progress import silent
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
REPO = Path(__file__).resolve().parents[2]


def test_every_user_gets_the_list_a_request_would_give_and_nothing_they_had(tmp_path, items_of, log_of) -> None:
    overrides = [
        f"cluster.state={tmp_path / 'state'}",
        "cluster.dataset=tiny",
        "serve.http_port=18790",
        "models.encoder.uri=hash",
        "models.encoder.dimension=32",
        "pipelines.train_ranker=false",
    ]
    settings = load_settings("local", overrides, environ=None)
    workspace = Workspace(settings)
    dataset = Dataset("tiny", items_of(40), log_of())
    write_dataset(dataset, workspace.dataset_folder())
    embedder = Embedder(workspace.artifacts(), workspace.encoder_spec(), InlineRunner(lambda: HashEncoder(32)), None)
    release = build_release(settings, dataset, embedder=embedder, progress=silent).release
    keep_release(settings, release)
    users = tmp_path / "users.txt"
    users.write_text("\n".join([*(f"u{n}" for n in range(20)), "stranger", "u0", ""]))
    words = [w for override in overrides for w in ("--set", override)]
    command = [sys.executable, "-m", "cluster.cli", "recommend", "--users", str(users), "--k", "5", "--json", *words]

    def run(out: Path) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(REPO)}
        return subprocess.run(
            [*command, "--out", str(out)], capture_output=True, text=True, cwd=REPO, env=env, timeout=150
        )

    done = run(tmp_path / "lists.parquet")
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["users"], said["rows"], said["degraded"]) == (21, 105, 0)
    assert said["release"] == release.release_id
    rows = pq.read_table(tmp_path / "lists.parquet").to_pylist()
    lists: dict[str, list[str]] = {}
    for row in rows:
        lists.setdefault(row["user"], []).append(row["item"])
        assert row["rank"] == len(lists[row["user"]]) and row["sources"] and row["release"] == release.release_id
    assert len(lists) == 21
    for user, item in zip(dataset.events.user_ids, dataset.events.item_ids, strict=True):
        assert item not in lists[user], "touched items are left out"
    assert len({tuple(items) for items in lists.values()}) > 10, "lists are personal"
    users.write_text("not an id\n")
    refused = run(tmp_path / "other.parquet")
    assert refused.returncode == 1 and "line 1 is no user id" in refused.stderr
    assert not (tmp_path / "other.parquet").exists()
