"""Operating the real graph: a second start, an engine that is left or killed, writing ahead, a killed driver.

The last test ends the deployment, so it stays the last of the folder.
"""

import json
import time
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from cluster.ledger import Ledger

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_second_start_on_the_same_ports_names_who_holds_them(deployment, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = deployment.elsewhere(tmp_path / "other").run("up", timeout=60)
    assert done.returncode == 1
    assert deployment.url.rpartition(":")[2] in done.stderr and "pid" in done.stderr


def engines_of(deployment) -> list[psutil.Process]:
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


def test_a_reader_who_leaves_a_stream_frees_the_engine_within_two_seconds(deployment) -> None:
    engines = engines_of(deployment)
    stream = deployment.stream(user_id="405", k=50, explain=True, deadline_ms=5000, reasons_deadline_ms=60_000)
    assert [next(stream)[0] for _ in range(2)] == ["items", "reason"]
    writing = cpu_share(engines, 1.0)
    stream.close()
    time.sleep(2.0)
    assert cpu_share(engines, 1.0) < 0.3 * writing


@pytest.mark.heavy
def test_a_stream_ends_properly_when_the_engine_is_killed_and_the_model_comes_back(deployment) -> None:
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


def shown_of(deployment, user: str, wanted: str) -> str:
    """What the profile says of the user: asked again for a while, since a busy cache store is done without."""
    ends = time.monotonic() + 10
    while True:
        asked = {"user_id": user}
        shown = str(httpx.post(f"{deployment.url}/v1/users:profile", json=asked, timeout=30).json()["summary"])
        if shown.startswith(wanted) or time.monotonic() > ends:
            return shown
        time.sleep(0.2)


@pytest.mark.heavy
def test_what_was_written_ahead_is_ready_when_it_is_asked_for(deployment) -> None:
    file = deployment.state.parent / "summaries.parquet"
    done = deployment.run("explain", "--summaries", str(file), "--users", "3", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["kept"] == 3
    for row in pq.read_table(file).to_pylist():
        assert row["summary"] and shown_of(deployment, row["user"], row["summary"]).startswith(row["summary"])
    done = deployment.run("explain", "--warm", "--users", "1", "--most", "10", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    user = pq.read_table(file)["user"][0].as_py()
    answer = deployment.recommend(user_id=user, k=10, explain=True, deadline_ms=5000, reasons_deadline_ms=0)
    # Live statistics may have changed what is said of some items since; none is written while the list waits.
    assert [item["reason_source"] for item in answer.json()["items"]].count("cache") >= 5


@pytest.mark.heavy
def test_down_cleans_up_after_a_killed_driver_and_a_new_start_works(deployment) -> None:
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
