"""The closed set of functions that turn raw samples into figures.

A benchmark names one of them per target; `verify` calls the same one again on the files. A measure is a pure function
of the raw samples and of JSON parameters. Knows nothing of how samples were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from loadtests import report, stats
from loadtests.samples import RunResult
from loadtests.stats import Estimate, Floats

if TYPE_CHECKING:
    import pyarrow as pa

Measure = Callable[..., Estimate]
Statistic = Literal["median", "mean", "p99"]
MEASURES: dict[str, Measure] = {}


def measure(function: Measure) -> Measure:
    """Register a function `(*paths of raw samples, **parameters) -> Estimate` under its name. Names are unique."""
    name = function.__name__
    if name in MEASURES:
        raise ValueError(f"a measure named {name} exists")
    MEASURES[name] = function
    return function


@measure
def latency_quantile(path: Path, *, q: float) -> Estimate:
    """Quantile of the latency of list calls in ms, from the intended time, failures as infinitely slow."""
    return stats.quantile(report.latency_ms(report.measured(RunResult.load(path).table, report.LIST_KINDS)), q)


@measure
def stage_quantile(path: Path, *, stage: str, q: float) -> Estimate:
    """Quantile of one stage's ms as the server reported it."""
    columns = report.measured(RunResult.load(path).table, report.LIST_KINDS)
    return stats.quantile(report.stage_ms(columns, stage), q)


@measure
def goodput(path: Path, *, deadline_ms: float) -> Estimate:
    """Good answers of list calls inside the deadline, per second."""
    run = RunResult.load(path)
    columns = report.measured(run.table, report.LIST_KINDS)
    return report.goodput(columns, deadline_ms=deadline_ms, measured_s=float(run.spec["measured_s"]))


@measure
def client_lag_quantile(path: Path, *, q: float) -> Estimate:
    """Quantile of the client's own lag behind its schedule, in ms."""
    return stats.quantile(report.client_lag_ms(RunResult.load(path).table), q)


def holds(run: RunResult, *, objective_ms: float, q: float = 0.99) -> bool | None:
    """Whether the latency quantile of a run meets the objective; None when the run is invalid and says nothing."""
    if report.invalid_because(run):
        return None
    value = stats.quantile(report.latency_ms(report.measured(run.table, report.LIST_KINDS)), q).value
    return value is not None and value <= objective_ms


@measure
def highest_rate(*paths: Path, objective_ms: float, q: float = 0.99) -> Estimate:
    """The highest offered rate that held the objective; n is the number of runs.

    The interval is what was tried around it: that rate itself, and the lowest higher rate that did not hold it. Runs
    in which the client was late count for neither: a border they would set is no border, and the upper bound is None.
    """
    held: list[float] = []
    failed: list[float] = []
    for path in paths:
        run = RunResult.load(path)
        verdict = holds(run, objective_ms=objective_ms, q=q)
        if verdict is not None:
            (held if verdict else failed).append(float(run.spec["rate_rps"]))
    best = max(held, default=0.0)
    return Estimate(best, len(paths), (best, min((rate for rate in failed if rate > best), default=None)))


@measure
def arm(path: Path, *, name: str, statistic: Statistic = "median") -> Estimate:
    """One arm of an interleaved comparison: the mean over rounds of the statistic of a round."""
    return stats.mean(_per_round(path, name, statistic))


@measure
def paired_ratio(path: Path, *, over: str, under: str, statistic: Statistic = "median") -> Estimate:
    """Geometric mean over rounds of `over`/`under`, each round paired with itself."""
    ratios = stats.paired_ratios(_per_round(path, over, statistic), _per_round(path, under, statistic))
    return stats.geometric_mean(ratios)


@measure
def array_mean(path: Path) -> Estimate:
    """Mean of a .npy array of figures."""
    return stats.mean(np.load(path, allow_pickle=False))


@measure
def array_quantile(path: Path, *, q: float) -> Estimate:
    """Quantile of a .npy array of figures."""
    return stats.quantile(np.load(path, allow_pickle=False), q)


def _per_round(path: Path, name: str, statistic: Statistic) -> Sequence[float]:
    import pyarrow.parquet as pq

    table: pa.Table = pq.read_table(path)
    rounds, values = table["round"].to_numpy(), table["value"].to_numpy()
    mine = table["arm"].to_numpy(zero_copy_only=False).astype(str) == name
    if not mine.any():
        raise ValueError(f"{path.name} holds no arm named {name}")
    return [_STATISTICS[statistic](values[mine & (rounds == r)]) for r in np.unique(rounds[mine])]


def _p99(values: Floats) -> float:
    return float(np.sort(values)[max(0, int(np.ceil(len(values) * 0.99)) - 1)])


_STATISTICS: dict[Statistic, Callable[[Floats], float]] = {
    "median": lambda values: float(np.median(values)),
    "mean": lambda values: float(values.mean()),
    "p99": _p99,
}
