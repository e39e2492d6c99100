"""The benches and the command line of the load tests against a real server in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadtests.__main__ import app, main
from loadtests.bench.harness import run_bench
from loadtests.bench.verify import verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "loadtests.bench.loopback"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def loadtests(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_the_http_bench_states_rate_goodput_latency_and_stages_that_verify(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"url": url, "rates": "50,100", "duration_s": 0.6, "warmup_s": 0.2, "settle_s": 0, "objective_ms": 400}
    options |= {"attempts": 1, "lag_p99_bound_ms": 200}  # the machine of a test run is busy
    code = run_bench("http", state=tmp_path, json=True, options=options)
    line = json.loads(capsys.readouterr().out)
    targets = line["targets"]
    wanted = {"max_rate_rps", "goodput_rps", "p50_ms", "p99_ms", "client_lag_p99_ms"}
    assert wanted | {"stage_total_p50_ms", "stage_total_p99_ms"} == set(targets)
    assert code == (0 if line["ok"] else 1)
    assert targets["stage_total_p50_ms"]["value"] == 0.01
    assert targets["goodput_rps"]["value"] > 20 and 0 < targets["p50_ms"]["value"] <= 400
    (folder,) = (tmp_path / "bench").iterdir()
    assert verify(folder) == 0


def test_a_cluster_that_is_not_there_meets_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"url": "http://127.0.0.1:9", "rates": "20", "duration_s": 0.4, "warmup_s": 0, "attempts": 1}
    assert run_bench("http", state=tmp_path, json=True, options=options) == 1
    targets = json.loads(capsys.readouterr().out)["targets"]
    assert targets["max_rate_rps"]["value"] == 0 and targets["goodput_rps"]["value"] == 0
    assert targets["p99_ms"]["value"] is None and targets["p99_ms"]["met"] is False


def test_the_client_bench_runs_its_own_server_and_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"rates": "300", "duration_s": 0.4, "warmup_s": 0.1, "round_s": 0.2, "rounds": 3}
    assert run_bench("client", state=tmp_path, json=True, options=options) in (0, 1)
    line = json.loads(capsys.readouterr().out)
    assert line["targets"]["ceiling_rps"]["n"] >= 1
    assert line["targets"]["p50_at_low_rate_ms"]["n"] == 3
    assert ("p50_over_wrk" in line["targets"]) is line["facts"]["wrk"]
    (folder,) = (tmp_path / "bench").iterdir()
    assert verify(folder) == 0


def test_the_command_line_runs_a_workload_and_recomputes_its_report(url: str, tmp_path: Path) -> None:
    work, raw = tmp_path / "w.jsonl", tmp_path / "raw.parquet"
    made = CliRunner().invoke(app, ["workload", str(work), "--count", "50", "--stream-share", "0.5"])
    assert made.exit_code == 0, made.output
    shape = ("--rate", "60", "--duration-s", "0.5", "--warmup-s", "0.1", "--lag-p99-bound-ms", "1000")
    first = loadtests("run", "--url", url, "--workload-file", work, "--out", raw, "--json", *shape)
    assert first.returncode == 0, first.stderr
    again = CliRunner().invoke(app, ["report", str(raw), "--json"])
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert json.loads(first.stdout)["outcomes"]["answered"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "--url", "http://192.0.2.1"), "--allow-remote"),
        (("run", "--url", "ftp://127.0.0.1"), "http://127.0.0.1:8000"),
        (("run", "--rate", "0"), "rate must be"),
        (("bench", "client", "--option", "rates"), "key=value"),
    ],
)
def test_what_cannot_run_is_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["loadtests", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in error and "Traceback" not in error
