"""What a run says: exact percentiles with intervals, goodput, stages, and whether the client itself was fit to judge.

A request without a good answer counts as infinitely slow, so a service cannot improve its percentiles by failing.
Knows the columns of `loadtests.samples` and nothing of how they came about. Called by the command line and benchmarks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtests.http1 import Outcome
from loadtests.samples import RunResult
from loadtests.schedule import NS
from loadtests.stats import Estimate, Floats, mean, quantile

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.table import Table

QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
LIST_KINDS = ("recommend", "stream", "get")
"""Kinds whose latency is held against the deadline; events have their own row."""


def measured(table: pa.Table, kinds: Collection[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns without the warm-up, as arrays; only rows of `kinds` when given."""
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    keep = columns["measured"].astype(bool)
    if kinds is not None:
        keep = keep & np.isin(columns["kind"].astype(str), list(kinds))
    return {name: column[keep] for name, column in columns.items()}


def latency_ms(columns: Mapping[str, np.ndarray[Any, Any]]) -> Floats:
    """Return ms from the intended send time to the answer (streams: to the `items` event); inf without a good one."""
    stream = columns["kind"].astype(str) == "stream"
    end = np.where(stream, columns["items_ns"], columns["done_ns"])
    whole = stream | (columns["outcome"] == Outcome.ANSWERED)
    good = whole & (end >= 0) & (columns["status"] >= 200) & (columns["status"] < 300)
    return np.asarray(np.where(good, (end - columns["intended_ns"]) / 1e6, np.inf), dtype=np.float64)


def goodput(columns: Mapping[str, np.ndarray[Any, Any]], *, deadline_ms: float, measured_s: float) -> Estimate:
    """Return good answers inside the deadline per second; bootstrap interval over slices of 1 s, at least 10 slices."""
    if not len(columns["intended_ns"]):
        return Estimate(0.0, 0, (None, None))
    inside = latency_ms(columns) <= deadline_ms
    slices = max(10, round(measured_s))
    width = measured_s / slices
    since = (columns["intended_ns"] - columns["intended_ns"][0]) / NS
    slot = np.minimum((since / width).astype(np.int64), slices - 1)
    rates = np.bincount(slot[inside], minlength=slices) / width
    spread = mean(rates)
    return Estimate(float(inside.sum() / measured_s), len(inside), spread.ci95)


def client_lag_ms(table: pa.Table) -> Floats:
    """Return how late the client took each measured arrival up, in ms; its own fault, never the server's."""
    columns = measured(table)
    return np.asarray((columns["woke_ns"] - columns["intended_ns"]) / 1e6)


def invalid_because(result: RunResult) -> list[str]:
    """Return why the run must not be believed; empty when it may."""
    lag = quantile(client_lag_ms(result.table), 0.99).value
    bound = float(result.spec["lag_p99_bound_ms"])
    if lag is None:
        return ["nothing was measured: no arrival after the warm-up"]
    if lag > bound:
        return [f"the client lagged {lag:.1f} ms (p99) behind its own schedule, more than {bound:g} ms"]
    return []


def stage_names(table: pa.Table) -> list[str]:
    """Return the stages named by the Server-Timing headers, in alphabetical order."""
    return [name[6:-3] for name in table.column_names if name.startswith("stage_")]


def stage_ms(columns: Mapping[str, np.ndarray[Any, Any]], stage: str) -> Floats:
    """Return the ms of one stage for every answer that named it."""
    values = np.asarray(columns[f"stage_{stage}_ms"], dtype=np.float64)
    return np.asarray(values[np.isfinite(values)], dtype=np.float64)


def summarise(result: RunResult, *, deadline_ms: float) -> dict[str, Any]:
    """Return the whole summary as plain JSON values; every figure can be recomputed from the raw samples."""
    table, seconds = result.table, float(result.spec["measured_s"])
    everything, lists = measured(table), measured(table, LIST_KINDS)
    n, lag = len(everything["index"]), client_lag_ms(table)
    reasons = invalid_because(result)
    outcomes = {o.name.lower(): int((everything["outcome"] == o).sum()) for o in Outcome}
    codes, counts = np.unique(everything["status"], return_counts=True)
    return {
        "valid": not reasons,
        "invalid_because": reasons,
        "n": n,
        "offered_rps": n / seconds,
        "deadline_ms": deadline_ms,
        "goodput_rps": goodput(lists, deadline_ms=deadline_ms, measured_s=seconds).as_json(),
        "degraded": int(everything["degraded"].sum()),
        "outcomes": outcomes,
        "statuses": {str(code): int(count) for code, count in zip(codes, counts, strict=True) if code},
        "latency_ms": {kind: _quantiles(latency_ms(measured(table, [kind]))) for kind in _kinds(everything)},
        "stages_ms": {stage: _quantiles(stage_ms(everything, stage)) for stage in stage_names(table)},
        "stream_ms": _stream(measured(table, ["stream"])),
        "client": {
            "lag_ms": _quantiles(lag),
            "dropped": outcomes["dropped"],
            "retried": int(everything["retried"].sum()),
        },
    }


def _kinds(columns: Mapping[str, np.ndarray[Any, Any]]) -> list[str]:
    return sorted(set(columns["kind"].astype(str).tolist()))


def _quantiles(values: Floats) -> dict[str, Any]:
    return {name: quantile(values, q).as_json() for name, q in QUANTILES.items()}


def _stream(columns: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """First reason, every reason, and the end of the streams, all from the intended time."""
    if not len(columns["index"]):
        return {}
    start, reasons = columns["intended_ns"], columns["reasons_ns"]
    first = [(row[0] - at) / 1e6 if len(row) else np.inf for row, at in zip(reasons, start, strict=True)]
    each = [(moment - at) / 1e6 for row, at in zip(reasons, start, strict=True) for moment in row]
    done = np.where(columns["stream_done_ns"] >= 0, (columns["stream_done_ns"] - start) / 1e6, np.inf)
    rows = {"first_reason": first, "each_reason": each, "done": done}
    return {name: _quantiles(np.asarray(values, dtype=np.float64)) for name, values in rows.items()}


def render(summary: Mapping[str, Any]) -> Table:
    """Return the summary as a table for people."""
    from rich.table import Table

    good = summary["goodput_rps"]["value"]
    title = f"{summary['n']} requests, {summary['offered_rps']:.1f}/s offered, goodput {good:.1f}/s"
    table = Table(title=title + f" inside {summary['deadline_ms']:g} ms", caption=_caption(summary))
    table.add_column("ms")
    for name in QUANTILES:
        table.add_column(name, justify="right")
    table.add_column("p99, 95 % interval", justify="right")
    sections = [("", summary["latency_ms"]), ("stream ", summary["stream_ms"]), ("stage ", summary["stages_ms"])]
    for prefix, rows in [*sections, ("client ", {"lag": summary["client"]["lag_ms"]})]:
        for label, row in rows.items():
            values = [_ms(row[name]["value"]) for name in QUANTILES]
            table.add_row(prefix + label, *values, " … ".join(_ms(bound) for bound in row["p99"]["ci95"]))
    return table


def _caption(summary: Mapping[str, Any]) -> str:
    parts = [f"{name} {count}" for name, count in summary["outcomes"].items() if count]
    parts += [f"status {code}: {count}" for code, count in summary["statuses"].items()]
    parts += [f"degraded {summary['degraded']}", f"retried {summary['client']['retried']}"]
    return ", ".join(parts) + "".join(f"\nINVALID: {reason}" for reason in summary["invalid_because"])


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
