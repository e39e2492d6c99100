"""The real graph: `raycommend up` with Ray, HAProxy, Valkey, FAISS, the trained ranker and vLLM, over HTTP.

Started once, from a folder full of packages named like ours, and stopped by Ctrl-C; nothing may be left running.
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
import psutil
import pyarrow.parquet as pq
import pytest

from cluster.ledger import Ledger
from pipelines.dataset import read_dataset

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
REPO = Path(__file__).resolve().parents[2]
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
    process: subprocess.Popen[bytes] | None = None
    url: str = f"http://127.0.0.1:{PORTS['serve.http_port']}"

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "cluster.cli", *words, *self.settings]

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


def click(user: str, item: str) -> dict[str, object]:
    return {"event_id": uuid.uuid4().hex, "user_id": user, "item_id": item, "type": "click"}


@pytest.fixture(scope="module")
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
    running = Deployment(state, hostile, settings)
    running.command = lambda *words: [str(Path(sys.executable).parent / "raycommend"), *words, *settings]  # type: ignore[method-assign]
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=60) == 0
    assert Ledger(state).alive() == [], "Ctrl-C left processes behind"


def test_it_is_ready_and_names_its_release(deployment: Deployment) -> None:
    state = httpx.get(f"{deployment.url}/readyz", timeout=10).json()
    assert state["ready"] is True
    assert state["releases"]["main"].startswith("r-")
    assert state["store"] == "ok" and state["statistics"]["main"]["asked_age_s"] < 60
    assert state["statistics"]["main"]["unknown_items"] == 0
    deadline = time.monotonic() + 30
    # A busy machine may need longer than the time this question has; what was said last is told then.
    while state["explainer"]["state"] != "ok":
        assert state["ready"] is True and time.monotonic() < deadline, state
        state = httpx.get(f"{deployment.url}/readyz", timeout=10).json()


def test_a_known_user_gets_ten_items_with_stage_times(deployment: Deployment) -> None:
    response = deployment.recommend(user_id="196", k=10, deadline_ms=5000)
    answer = response.json()
    assert [i["rank"] for i in answer["items"]] == list(range(1, 11))
    assert answer["degraded"] is False, answer["degraded_reasons"]
    assert {"features", "retrieve", "rank", "select", "total"} <= answer["timings_ms"].keys()
    assert "retrieve;dur=" in response.headers["server-timing"]


def test_an_acknowledged_click_is_in_the_very_next_answer(deployment: Deployment) -> None:
    user = f"fresh-{uuid.uuid4().hex[:8]}"
    before = deployment.recommend(user_id=user, k=100, deadline_ms=5000).json()["items"]
    for item in [i["item_id"] for i in before[:20]]:
        assert deployment.events(click(user, item)).json()["results"][0]["status"] == "accepted"
        after = deployment.recommend(user_id=user, k=100, deadline_ms=5000).json()
        assert item not in [i["item_id"] for i in after["items"]], "a taken item was recommended again"
        assert after["profile_age_ms"] is not None


def test_a_streamed_answer_sends_the_list_first_and_reasons_by_the_language_model(deployment: Deployment) -> None:
    got = list(deployment.stream(user_id="13", k=5, explain=True, deadline_ms=5000, reasons_deadline_ms=60_000))
    names = [name for name, _ in got]
    assert names == ["items", *["reason"] * 5, "done"]
    titles = {i["item_id"]: i["title"] for i in got[0][1]["items"]}  # type: ignore[attr-defined]
    for _, reason in got[1:-1]:
        assert reason["reason_source"] in ("llm", "cache")
        assert len(str(reason["reason"])) <= 240
        cited = [titles[str(reason["item_id"])], *reason["evidence"]["liked"], *reason["evidence"]["viewed"]]  # type: ignore[index]
        shared = [str(s).lower() for s in reason["evidence"]["shared"]]  # type: ignore[index]
        text = str(reason["reason"])
        claims = reason["evidence"]["popular"] or reason["evidence"]["trending"]  # type: ignore[index]
        assert any(t in text for t in cited) or any(s in text.lower() for s in shared) or claims


def test_a_duplicate_event_changes_nothing(deployment: Deployment) -> None:
    event = click(f"twice-{uuid.uuid4().hex[:8]}", "50")
    assert deployment.events(event).json()["results"][0]["status"] == "accepted"
    assert deployment.events(event).json()["results"][0]["status"] == "duplicate"


def test_a_query_steers_the_list(deployment: Deployment) -> None:
    answer = deployment.recommend(query="space adventure with robots", k=10, deadline_ms=5000).json()
    assert answer["degraded"] is False, answer["degraded_reasons"]
    assert "semantic" in {s for i in answer["items"] for s in i["sources"]}


def test_a_posted_search_steers_the_next_list_of_its_user_and_of_nobody_else(deployment: Deployment) -> None:
    user = f"seeker-{uuid.uuid4().hex[:8]}"
    before = deployment.recommend(user_id=user, k=20, deadline_ms=5000).json()
    event = {"event_id": uuid.uuid4().hex, "user_id": user, "type": "search", "query": "space adventure with robots"}
    assert deployment.events(event).json()["results"][0]["status"] == "accepted"
    after = deployment.recommend(user_id=user, k=20, deadline_ms=5000).json()
    assert after["degraded"] is False, after["degraded_reasons"]
    lists = [[i["item_id"] for i in answer["items"]] for answer in (before, after)]
    assert lists[0] != lists[1]
    profile = httpx.post(f"{deployment.url}/v1/users:profile", json={"user_id": user}, timeout=30)
    assert 0 <= profile.json()["search_age_ms"] < 60_000 and "robots" not in profile.text
    other = deployment.recommend(user_id=f"{user}-not", k=20, deadline_ms=5000).json()
    assert [i["item_id"] for i in other["items"]] == lists[0]


def test_strangers_who_declare_different_tastes_get_different_lists(deployment: Deployment) -> None:
    lists, catalog = {}, read_dataset(deployment.state / "data" / "movielens-100k").items
    carriers = {g: {i.item_id for i in catalog if g in i.labels.get("genres", ())} for g in ("Animation", "Film-Noir")}
    for genre in ("Animation", "Film-Noir", None):
        user = f"declares-{uuid.uuid4().hex[:8]}"
        if genre is not None:
            body = {"user_id": user, "attributes": {"genres": [genre]}}
            answer = httpx.put(f"{deployment.url}/v1/users", json=body, timeout=30)
            assert answer.status_code == 200 and answer.json()["known_labels"] == 1, answer.text
        answer = deployment.recommend(user_id=user, k=10, deadline_ms=5000).json()
        assert answer["degraded"] is False, answer["degraded_reasons"]
        lists[genre] = {i["item_id"] for i in answer["items"]}
    assert lists["Animation"] != lists["Film-Noir"]
    for genre, carry in carriers.items():
        assert len(lists[genre] & carry) > max(len(found & carry) for of, found in lists.items() if of != genre), lists


def test_pages_never_repeat_an_item(deployment: Deployment) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        extra = {"cursor": cursor} if cursor else {}
        answer = deployment.recommend(user_id="244", k=10, deadline_ms=5000, **extra).json()
        seen += [i["item_id"] for i in answer["items"]]
        cursor = answer["next_cursor"]
    assert len(seen) == len(set(seen)) == 40


def test_filters_are_never_violated(deployment: Deployment) -> None:
    wanted = {"genres": {"any_of": ["Comedy"], "none_of": ["Romance"]}, "year": {"gte": 1995}}
    answer = deployment.recommend(user_id="196", k=20, filters=wanted, explain=True, deadline_ms=5000).json()
    assert len(answer["items"]) == 20
    assert all(i["evidence"]["year"] >= 1995 for i in answer["items"])


def test_lists_without_a_user_come_from_the_same_release(deployment: Deployment) -> None:
    similar = httpx.get(f"{deployment.url}/v1/items/50/similar?k=5", timeout=30).json()
    assert len(similar["items"]) == 5 and similar["degraded"] is False, similar["degraded_reasons"]
    assert "50" not in [i["item_id"] for i in similar["items"]]
    together = similar["bought_together"]
    assert together and all(r["support"] >= 5 and 0 < r["confidence"] <= 1 < r["lift"] for r in together)
    for path in ("items:trending", "items:popular"):
        answer = httpx.get(f"{deployment.url}/v1/{path}?k=5&genres=Comedy", timeout=30).json()
        assert len(answer["items"]) == 5 and answer["release"] == similar["release"]
    assert httpx.get(f"{deployment.url}/v1/items/no-such-item/similar", timeout=30).status_code == 404
    assert httpx.get(f"{deployment.url}/v1/items:popular?nope=1", timeout=30).status_code == 422


def test_a_linked_session_counts_for_its_user_at_once(deployment: Deployment) -> None:
    user, session = f"linked-{uuid.uuid4().hex[:8]}", f"s-{uuid.uuid4().hex[:8]}"
    event = {"event_id": uuid.uuid4().hex, "session_id": session, "item_id": "50", "type": "like"}
    assert deployment.events(event).json()["results"][0]["status"] == "accepted"
    ids = {"user_id": user, "session_id": session}
    for known, count in ((True, 1), (False, 0)):
        linked = httpx.post(f"{deployment.url}/v1/users:link", json=ids, timeout=30).json()
        assert (linked["session_known"], linked["events"]) == (known, count)
    profile = httpx.post(f"{deployment.url}/v1/users:profile", json={"user_id": user}, timeout=30).json()
    assert [(e["item_id"], e["title"], e["type"]) for e in profile["events"]] == [("50", "Star Wars", "like")]
    answer = deployment.recommend(user_id=user, k=100, deadline_ms=5000).json()
    assert "50" not in [i["item_id"] for i in answer["items"]] and answer["profile_age_ms"] is not None


def test_an_item_is_recommended_within_a_second_of_its_put_and_never_after_its_removal(deployment: Deployment) -> None:
    item_id, title = f"new-{uuid.uuid4().hex[:8]}", "Submarine Cartographers of the Baltic"
    url = f"{deployment.url}/v1/items/{item_id}"
    put = httpx.put(url, json={"title": title, "attributes": {"genres": ["Cartography"], "year": 1998}}, timeout=30)
    assert put.status_code == 200 and put.json()["status"] == "created", put.text

    def found() -> bool:
        answer = deployment.recommend(query=title, k=5, deadline_ms=5000).json()
        return item_id in [i["item_id"] for i in answer["items"]]

    until = time.monotonic() + 1.0
    while not found():
        assert time.monotonic() < until
    rare = {"genres": {"any_of": ["Cartography"]}}
    for wish in ({"filters": rare}, {"candidates": [item_id]}):
        answer = deployment.recommend(user_id="196", k=5, deadline_ms=5000, **wish).json()
        assert [i["item_id"] for i in answer["items"]] == [item_id]
        assert answer["items"][0]["score_kind"] == "probability", "the ranker scores it too"
    assert httpx.get(f"{url}/similar", timeout=30).json()["items"]
    assert httpx.delete(url, timeout=30).json()["status"] == "removed"
    until = time.monotonic() + 1.0
    while found():
        assert time.monotonic() < until
    assert httpx.get(f"{url}/similar", timeout=30).status_code == 404


def test_what_many_take_now_trends_within_seconds(deployment: Deployment) -> None:
    item_id = "1653"
    events = [
        {"event_id": uuid.uuid4().hex, "user_id": f"crowd-{n}", "item_id": item_id, "type": "purchase"}
        for n in range(400)
    ]
    answer = deployment.events(*events)
    assert {r["status"] for r in answer.json()["results"]} == {"accepted"}
    until = time.monotonic() + 30
    while item_id not in [
        i["item_id"] for i in httpx.get(f"{deployment.url}/v1/items:trending?k=10", timeout=30).json()["items"]
    ]:
        assert time.monotonic() < until
        time.sleep(0.5)
    while not list((deployment.state / "events").rglob("*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"k": 0}', 422),
        (b'{"k": "10"}', 422),
        (b'{"nope": 1}', 422),
        (b'{"user_id": "' + b"x" * 1_000_000 + b'"}', 422),
        (b'{"user_id": "a\\u0000b"}', 422),
        (b'{"user_id": "' + b"x" * 3_000_000 + b'"}', 413),
        (b'{"user_id": "nobody-knows-me"}', 200),
        (b'{"candidates": ["no-such-item"], "user_id": "196"}', 200),
    ],
)
def test_bad_input_gets_the_promised_answer_over_the_real_wire(
    deployment: Deployment, body: bytes, status: int
) -> None:
    response = httpx.post(f"{deployment.url}/v1/recommend", content=body, timeout=30)
    assert response.status_code == status
    if status != 200:
        problem = response.json()
        assert problem["status"] == status
        assert "Traceback" not in response.text and "/" not in problem["detail"].replace("/docs", "")


def test_a_second_start_on_the_same_ports_names_who_holds_them(deployment: Deployment, tmp_path: Path) -> None:
    other = Deployment(tmp_path / "other", deployment.cwd, [])
    settings = list(deployment.settings)
    settings[settings.index(f"cluster.state={deployment.state}")] = f"cluster.state={tmp_path / 'other'}"
    (tmp_path / "other").mkdir()
    other.command = lambda *words: [str(Path(sys.executable).parent / "raycommend"), *words, *settings]  # type: ignore[method-assign]
    done = other.run("up", timeout=60)
    assert done.returncode == 1
    assert str(PORTS["serve.http_port"]) in done.stderr and "pid" in done.stderr


def engines_of(deployment: Deployment) -> list[psutil.Process]:
    found = [psutil.Process(p.pid) for p in Ledger(deployment.state).alive() if p.kind == "engine"]
    assert found, "the engine's processes are in the ledger"
    return found


def cpu_share(running: list[psutil.Process], seconds: float) -> float:
    """CPU seconds per second that the processes use from now on."""

    def used() -> float:
        times = [process.cpu_times() for process in running]
        return sum(t.user + t.system for t in times)

    before = used()
    time.sleep(seconds)
    return (used() - before) / seconds


def test_a_reader_who_leaves_a_stream_frees_the_engine_within_two_seconds(deployment: Deployment) -> None:
    engines = engines_of(deployment)
    stream = deployment.stream(user_id="405", k=50, explain=True, deadline_ms=5000, reasons_deadline_ms=60_000)
    assert [next(stream)[0] for _ in range(2)] == ["items", "reason"]
    writing = cpu_share(engines, 1.0)
    stream.close()
    time.sleep(2.0)
    assert cpu_share(engines, 1.0) < 0.3 * writing


def test_a_stream_ends_properly_when_the_engine_is_killed_and_the_model_comes_back(deployment: Deployment) -> None:
    engines, got = engines_of(deployment), []
    for name, data in deployment.stream(user_id="7", k=20, explain=True, deadline_ms=5000, reasons_deadline_ms=60_000):
        got.append((name, data))
        if [n for n, _ in got].count("reason") == 1:
            for engine in engines:
                engine.kill()
    assert [name for name, _ in got] == ["items", *["reason"] * 20, "done"]
    reasons = [data for name, data in got if name == "reason"]
    assert len({data["item_id"] for data in reasons}) == 20 and all(data["reason"] for data in reasons)
    assert reasons[0]["reason_source"] in ("llm", "cache") and reasons[-1]["reason_source"] == "template"
    answer = deployment.recommend(user_id="1", k=5, explain=True, deadline_ms=5000, reasons_deadline_ms=2000)
    assert answer.status_code == 200
    assert all(i["reason"] for i in answer.json()["items"])
    ends, sources = time.monotonic() + 150, set()
    while "llm" not in sources and time.monotonic() < ends:
        started = time.monotonic()
        answer = deployment.recommend(user_id="8", k=3, explain=True, deadline_ms=5000, reasons_deadline_ms=3000)
        assert answer.status_code == 200 and time.monotonic() - started < 9
        sources = {item["reason_source"] for item in answer.json()["items"]}
        time.sleep(1.0)
    assert "llm" in sources, "the engine was not started again"


def test_what_was_written_ahead_is_ready_when_it_is_asked_for(deployment: Deployment) -> None:
    file = deployment.state.parent / "summaries.parquet"
    done = deployment.run("explain", "--summaries", str(file), "--users", "3", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kept"] == 3
    for row in pq.read_table(file).to_pylist():
        asked = {"user_id": row["user"]}
        shown = httpx.post(f"{deployment.url}/v1/users:profile", json=asked, timeout=30).json()
        assert row["summary"] and str(shown["summary"]).startswith(row["summary"])
    done = deployment.run("explain", "--warm", "--users", "1", "--most", "10", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    user = pq.read_table(file)["user"][0].as_py()
    answer = deployment.recommend(user_id=user, k=10, explain=True, deadline_ms=5000, reasons_deadline_ms=0)
    # Live statistics may have changed what is said of some items since; none is written while the list waits.
    assert [item["reason_source"] for item in answer.json()["items"]].count("cache") >= 5


def test_down_cleans_up_after_a_killed_driver_and_a_new_start_works(deployment: Deployment) -> None:
    assert deployment.process is not None
    deployment.process.kill()
    deployment.process.wait(timeout=30)
    deployment.start()
    assert deployment.recommend(user_id="196", k=3, deadline_ms=5000).status_code == 200
    done = deployment.run("down", "--json", timeout=90)
    assert done.returncode == 0, done.stderr
    deployment.process.wait(timeout=60)
    time.sleep(0.5)
    assert Ledger(deployment.state).alive() == []
