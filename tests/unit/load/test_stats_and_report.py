"""Estimates and reports: exact, with honest intervals, and failures are never fast."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import report, stats
from loadtests.bench import measures
from loadtests.http1 import Exchange, Outcome
from loadtests.samples import RunResult, parse_server_timing, to_table

MS = 1_000_000


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_quantile_is_the_smallest_sample_with_enough_samples_at_or_below_it(values: list[float], q: float) -> None:
    found = stats.quantile(values, q).value
    below = sum(v <= found for v in values)  # type: ignore[operator]
    strictly = sum(v < found for v in values)  # type: ignore[operator]
    assert found in values and below >= q * len(values) - 1e-6 and strictly < q * len(values)


def test_the_interval_of_a_quantile_covers_the_true_one_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    truth = -np.log(0.1)  # p90 of Exp(1)
    inside = 0
    for _ in range(400):
        low, high = stats.quantile(rng.exponential(size=300), 0.9).ci95
        assert low is not None and high is not None
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.985


def test_a_bound_without_enough_samples_is_none_not_a_guess() -> None:
    assert stats.quantile(np.arange(100.0), 0.99).ci95[1] is None
    assert stats.quantile(np.arange(1000.0), 0.99).ci95[1] is not None
    assert stats.quantile([], 0.5) == stats.Estimate(None, 0, (None, None))
    assert stats.mean([1.0, 2.0]).ci95 == (None, None)


def test_the_interval_of_a_mean_of_few_rounds_is_not_too_narrow() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        low, high = stats.mean(rng.normal(size=8)).ci95
        assert low is not None and high is not None
        inside += low <= 0 <= high
    assert inside / 200 >= 0.90


def test_the_same_samples_give_the_same_interval_to_the_last_bit() -> None:
    values = np.random.default_rng(2).random(50)
    assert stats.mean(values) == stats.mean(values.copy())
    assert stats.geometric_mean(values) == stats.geometric_mean(values.copy())


def test_ratios_pair_rounds_and_refuse_what_does_not_pair() -> None:
    assert stats.geometric_mean(stats.paired_ratios([2, 4, 8], [1, 2, 4])).value == pytest.approx(2)
    for a, b in (([1], [1, 2]), ([], []), ([0], [1])):
        with pytest.raises(ValueError):
            stats.paired_ratios(a, b)


def test_stage_times_are_read_and_nonsense_is_left_out() -> None:
    header = b'features;dur=1.25, rank;desc="a b";dur=2, cache;desc=hit, x;dur=1.2.3, total;dur=9'
    assert parse_server_timing(header) == {"features": 1.25, "rank": 2.0, "total": 9.0}


def exchange(index: int, done_ms: float, *, status: int = 200, outcome: Outcome = Outcome.ANSWERED) -> Exchange:
    made = Exchange(index, b"")
    made.outcome, made.status = outcome, status
    made.woke_ns = 1 + index * 10 * MS
    made.done_ns = int(made.woke_ns + done_ms * MS) if outcome is Outcome.ANSWERED else 0
    return made


def result(
    exchanges: list[Exchange], *, kind: str = "recommend", lag_ms: float = 0, warm: int = 0, rate: float = 100
) -> RunResult:
    intended = [int(i * 10 * MS - lag_ms * MS) for i in range(len(exchanges))]
    table = to_table(exchanges, [kind] * len(exchanges), intended, 1, warm)
    return RunResult(table, {"measured_s": len(exchanges) / 100, "lag_p99_bound_ms": 5.0, "rate_rps": rate})


def test_a_request_without_a_good_answer_is_infinitely_slow() -> None:
    runs = [exchange(i, 1) for i in range(97)]
    runs += [
        exchange(97, 1, status=503),
        exchange(98, 0, status=0, outcome=Outcome.DROPPED),
        exchange(99, 0, status=0, outcome=Outcome.TIMEOUT),
    ]
    summary = report.summarise(result(runs), deadline_ms=50)
    latency = summary["latency_ms"]["recommend"]
    assert latency["p90"]["value"] == pytest.approx(1) and latency["p99"]["value"] is None
    assert summary["goodput_rps"]["value"] == pytest.approx(97)
    assert summary["outcomes"] == {"answered": 98, "timeout": 1, "dropped": 1, "connection": 0, "protocol": 0}
    assert summary["statuses"] == {"200": 97, "503": 1}


def test_goodput_counts_only_answers_inside_the_deadline() -> None:
    runs = [exchange(i, 10 if i % 4 else 90) for i in range(200)]
    assert report.summarise(result(runs), deadline_ms=50)["goodput_rps"]["value"] == pytest.approx(75)


def test_the_warm_up_is_kept_in_the_samples_and_out_of_the_figures() -> None:
    runs = [exchange(i, 500 if i < 10 else 1) for i in range(100)]
    made = result(runs, warm=10)
    assert made.table.num_rows == 100
    assert report.summarise(made, deadline_ms=50)["latency_ms"]["recommend"]["p999"]["value"] == pytest.approx(1)


def test_a_run_whose_client_was_late_is_invalid_and_says_why() -> None:
    runs = [exchange(i, 1) for i in range(100)]
    assert report.invalid_because(result(runs)) == []
    late = report.summarise(result(runs, lag_ms=8), deadline_ms=50)
    assert not late["valid"] and "8.0 ms" in late["invalid_because"][0]
    assert report.invalid_because(result(runs, warm=100)) != []


def test_a_stream_counts_from_its_items_even_when_it_never_finished() -> None:
    made = exchange(0, 0, outcome=Outcome.TIMEOUT)
    made.events = [(b"items", 1 + 3 * MS), (b"reason", 1 + 7 * MS)]
    summary = report.summarise(result([made], kind="stream"), deadline_ms=50)
    assert summary["latency_ms"]["stream"]["p50"]["value"] == pytest.approx(3)
    assert summary["stream_ms"]["first_reason"]["p50"]["value"] == pytest.approx(7)
    assert summary["stream_ms"]["done"]["p50"]["value"] is None


def test_raw_samples_survive_the_disk_and_give_the_same_report(tmp_path: Path) -> None:
    runs = [exchange(i, i % 7) for i in range(60)]
    for one in runs:
        one.server_timing = b"rank;dur=2.5"
    made = result(runs)
    again = RunResult.load(made.save(tmp_path / "raw" / "run.parquet"))
    first = report.summarise(made, deadline_ms=50)
    assert report.summarise(again, deadline_ms=50) == first
    assert first["stages_ms"]["rank"]["p99"]["value"] == 2.5
    assert report.render(first).row_count == 3


def test_the_highest_rate_ignores_runs_in_which_the_client_was_late(tmp_path: Path) -> None:
    fast, slow = [exchange(i, 1) for i in range(100)], [exchange(i, 90) for i in range(100)]
    runs = [result(fast, rate=10), result(fast, rate=20), result(fast, rate=40, lag_ms=9), result(slow, rate=80)]
    paths = [run.save(tmp_path / f"{i}.parquet") for i, run in enumerate(runs)]
    assert measures.highest_rate(*paths[:3], objective_ms=50) == stats.Estimate(20, 3, (20, None))
    assert measures.highest_rate(*paths, objective_ms=50) == stats.Estimate(20, 4, (20, 80))
    assert measures.highest_rate(paths[3], objective_ms=50).value == 0
