"""The benches of features, retrieval and freshness: small runs whose figures verify, and failures that show.

`freshness` runs here against a small server that keeps (or breaks) the contract's promises; against the real graph it
is the benchmark itself.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.config import load_settings
from loadtests.bench.harness import run_bench
from loadtests.bench.verify import verify

Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a benchmark in an empty state folder; what it wrote must verify."""
    tree = load_settings("local", [f"cluster.state={tmp_path}", "serve.http_port=18999"]).model_dump(mode="json")

    def start(name: str, **options: Any) -> tuple[int, dict[str, Any]]:
        code = run_bench(name, state=tmp_path, json=True, options=options, settings=tree)
        printed = capsys.readouterr()
        assert printed.out, printed.err
        line = json.loads(printed.out)
        assert verify(Path(line["folder"]), json=True) == 0
        capsys.readouterr()
        return code, line

    return start


def test_the_features_bench_reads_the_same_through_the_port_and_a_plain_pipeline(run: Run) -> None:
    _, line = run("features", quick="true", fetches=60, rounds=3)
    targets = line["targets"]
    assert targets["decoded_equal_share"]["value"] == 1.0 and targets["decoded_equal_share"]["n"] == 2
    assert targets["fetch_p99_ratio"]["target"] == "<= 1.2" and targets["fetch_p99_ratio"]["value"] > 0
    assert line["facts"]["serve_hop"] == "not measured: no cluster runs"


def test_the_retrieval_bench_states_recall_ratio_and_memory_of_each_size(run: Run) -> None:
    _, line = run("retrieval", quick="true", queries=40, rounds=3, kind="ivf_flat")
    targets, sizes = line["targets"], line["facts"]["sizes"]
    assert list(sizes) == ["300", "3000"] and all("nprobe" in facts for facts in sizes.values())
    assert targets["recall"]["value"] == min(targets[f"recall_{size}"]["value"] for size in sizes)
    assert targets["p99_vs_faiss"]["value"] == max(targets[f"p99_vs_faiss_{size}"]["value"] for size in sizes)
    assert targets["recall"]["value"] > 0.9 and targets["index_bytes_per_item_3000"]["value"] > 4 * 32
    assert "p99_1m_ms" not in targets


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"sizes": "many"}, "whole numbers"), ({"sizes": "10"}, "between"), ({"kind": "tree"}, "no index kind tree")],
)
def test_retrieval_options_that_make_no_sense_are_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], sentence: str
) -> None:
    assert run_bench("retrieval", state=tmp_path, json=True, options=options) == 2
    assert sentence in capsys.readouterr().err


@dataclass
class Shop:
    """As much of the API as `freshness` asks for: twenty films, clicks that take them off the list, live items."""

    reflects: bool = True
    live_items: bool = True
    item_delay_s: float = 0.0
    clicked: dict[str, dict[str, int]] = field(default_factory=dict)
    items: dict[str, float] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        if method == "POST" and path == "/v1/recommend":
            taken = self.clicked.get(body.get("user_id", ""), {})
            shown = [f"i{n}" for n in range(20) if f"i{n}" not in taken][: body["k"]]
            now = time.monotonic()
            shown += [item for item, at in self.items.items() if now >= at and "query" in body]
            age = int(time.time() * 1000) - max(taken.values()) if taken else None
            return 200, {"items": [{"item_id": item} for item in shown], "profile_age_ms": age}
        if method == "POST" and path == "/v1/events":
            if self.reflects:
                self.clicked.setdefault(body["user_id"], {})[body["item_id"]] = body["timestamp_ms"]
            return 202, {"results": [{"event_id": body["event_id"], "status": "accepted"}]}
        if self.live_items and method == "PUT":
            self.items[path.rpartition("/")[2]] = time.monotonic() + self.item_delay_s
            return 200, {"sequence": len(self.items)}
        if self.live_items and method == "DELETE":
            self.deleted.add(path.rpartition("/")[2])
            return 200, {}
        return 404, {"detail": "no such route"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    shop: Shop

    def _respond(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, document = self.shop.answer(self.command, self.path, json.loads(raw) if raw else None)
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_DELETE = _respond

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def url(shop: Shop) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"shop": shop}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_freshness_counts_every_click_and_finds_every_item(run: Run, shop: Shop, url: str) -> None:
    code, line = run("freshness", url=url, events=30, users="12", items=8)
    targets = line["targets"]
    assert code == 0 and line["ok"]
    assert (targets["reflected_share"]["value"], targets["reflected_share"]["n"]) == (1.0, 30)
    assert targets["item_p99_s"]["n"] == 8 and 0 < targets["item_p99_s"]["value"] < 1
    assert shop.deleted == set(shop.items) and len(shop.items) == 8


def test_an_event_that_the_next_answer_misses_is_a_missed_target(run: Run, shop: Shop, url: str) -> None:
    shop.reflects = False
    code, line = run("freshness", url=url, events=4, users="2", items=0)
    assert code == 1 and line["targets"]["reflected_share"]["value"] == 0.0
    assert line["targets"]["reflected_share"]["met"] is False


def test_an_item_that_takes_long_or_never_comes_is_a_missed_target(run: Run, shop: Shop, url: str) -> None:
    shop.item_delay_s = 60
    code, line = run("freshness", url=url, events=0, items=2, give_up_s=0.1)
    assert code == 1 and line["facts"]["items"]["never_found"] == 2
    assert line["targets"]["item_p99_s"]["value"] is None and line["targets"]["item_p99_s"]["met"] is False


def test_a_cluster_without_live_items_still_has_its_events_measured(run: Run, shop: Shop, url: str) -> None:
    shop.live_items = False
    code, line = run("freshness", url=url, events=4, users="2", items=2)
    assert code == 1 and line["targets"]["reflected_share"]["met"] is True
    assert any("no live items" in reason for reason in line["invalid"])


def test_freshness_refuses_a_cluster_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"url": "http://192.0.2.1:8000", "events": 1}
    assert run_bench("freshness", state=tmp_path, json=True, options=options) == 2
    assert "loopback only" in capsys.readouterr().err
