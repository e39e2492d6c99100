"""The part `live` of the benchmark `explain`: a running deployment, over HTTP only.

Warm lists (how long after the list the last cached reason comes) and lists beside reasons (how much slower a list gets
when the engine writes at a share of its capacity), open loop, arms in turn.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from loadtests import report
from loadtests.bench.explain import Options
from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from loadtests.open_loop import OpenLoopOptions, run_open_loop
from loadtests.samples import RunResult
from loadtests.schedule import Arrivals, LoadError
from loadtests.workload import Request

if TYPE_CHECKING:
    import pyarrow as pa

_LAG_BOUND_MS = 50.0
"""The client shares two cores with the engine here; its lag is part of both arms."""


def live(context: BenchContext, options: Options) -> None:
    """State `warm_last_reason_ms` and `list_p50_ratio`."""
    capacity = _warm(context, options)
    _beside(context, options, capacity)


def _warm(context: BenchContext, options: Options) -> float:
    """Ask for every user's list until its reasons are cached, then again; returns reasons per second while cold."""
    users = [str(user) for user in range(1, options.warm_users + 1)]
    began = time.perf_counter()
    cold = _offer(context, options, [_stream(u) for u in users], rate=0.5, seconds=2.0 * len(users), timeout_s=110)
    taken_s = time.perf_counter() - began
    context.save_run("warm-0", cold)
    # The first pass may overrun the queue, which answers with templates: a slow second one fills what is missing.
    _offer(context, options, [_stream(u) for u in users], rate=0.25, seconds=4.0 * len(users), timeout_s=110)
    run = _offer(context, options, [_stream(u) for u in users], rate=4.0, seconds=max(10.0, 0.5 * len(users)))
    context.save_run("warm-1", run)
    after_ms = last_reason_ms(run.table)
    if not len(after_ms):
        raise LoadError(f"no list with reasons came from {options.url}: start `raycommend up` first")
    file = context.save_array("warm_last_reason_ms", after_ms)
    context.target("warm_last_reason_ms", "array_quantile", file, q=0.5, aim=Aim(at_most=10.0))
    context.target("warm_last_reason_p99_ms", "array_quantile", file, q=0.99)
    return sum(len(at) for at in cold.table["reasons_ns"].to_pylist()) / taken_s


def last_reason_ms(table: pa.Table) -> np.ndarray:
    """Return, per finished stream, the ms between its `items` event and its last `reason` event."""
    items, done = table["items_ns"].to_numpy(), table["stream_done_ns"].to_numpy()
    reasons = table["reasons_ns"].to_pylist()
    return np.array(
        [(max(at) - items[i]) / 1e6 for i, at in enumerate(reasons) if at and items[i] >= 0 and done[i] >= 0]
    )


def _beside(context: BenchContext, options: Options, capacity: float) -> None:
    """Offer plain lists, and beside them lists that want reasons at `options.load` of capacity, or not, in turn."""
    explained = options.load * capacity / 10.0
    every = round(options.plain_rps / explained) + 1
    context.facts["live_reasons_per_s"] = round(capacity, 3)
    context.facts["explained_lists_per_s"] = round(explained, 4)
    rows: list[tuple[int, str, float]] = []
    for number in range(options.live_rounds):
        arms = ("with", "without") if number % 2 == 0 else ("without", "with")
        for arm in arms:
            requests = _mixed(number, every, explain=arm == "with", count=int(options.plain_rps * options.live_s * 2))
            run = _offer(context, options, requests, rate=options.plain_rps + explained, seconds=options.live_s)
            context.save_run(f"beside-{number}-{arm}", run)
            columns = report.measured(run.table, report.LIST_KINDS)
            rows += [(number, arm, float(ms)) for ms in report.latency_ms(columns)]
            context.tell(f"round {number + 1}, {arm} reasons: p50 {np.median(report.latency_ms(columns)):.1f} ms")
    file = _save(context, rows)
    context.target("list_p50_ratio", "paired_ratio", file, over="with", under="without", aim=Aim(at_most=1.3))
    context.target("list_p50_with_reasons_ms", "arm", file, name="with")
    context.target("list_p50_without_reasons_ms", "arm", file, name="without")


def _mixed(number: int, every: int, *, explain: bool, count: int) -> list[Request]:
    """Every `every`th request is a streamed list, with reasons or without; users of a round are new to the cache."""
    made = []
    for at in range(count):
        if at % every == every - 1:
            made.append(_stream(str(1 + (100 + 150 * number + at // every) % 943), explain=explain))
        else:
            body = {"user_id": str(1 + (at * 7) % 943), "k": 10, "explain": False}
            made.append(Request("recommend", json.dumps(body).encode()))
    return made


def _stream(user: str, *, explain: bool = True) -> Request:
    body = {"user_id": user, "k": 10, "explain": explain, "reasons_deadline_ms": 60_000}
    return Request("stream", json.dumps(body).encode())


def _offer(
    context: BenchContext,
    options: Options,
    requests: Sequence[Request],
    *,
    rate: float,
    seconds: float,
    timeout_s: float = 70.0,
) -> RunResult:
    run = run_open_loop(
        OpenLoopOptions(
            url=options.url,
            rate_rps=rate,
            duration_s=seconds,
            warmup_s=0.0,
            arrivals=Arrivals.CONSTANT,
            timeout_s=timeout_s,
            lag_p99_bound_ms=_LAG_BOUND_MS,
            api_key=os.environ.get("RAYCOMMEND_API_KEY") or None,
        ),
        requests,
    )
    context.invalid += [f"{rate:.3g}/s: {why}" for why in report.invalid_because(run)]
    return run


def _save(context: BenchContext, rows: Sequence[tuple[int, str, float]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers, arms, values = zip(*rows, strict=True)
    table = pa.table({"round": numbers, "arm": pa.array(arms).dictionary_encode(), "value": values})
    pq.write_table(table, context.folder / "beside.parquet")
    return "beside.parquet"
