"""Benchmark `http`: what a running cluster can take and where the time goes, black box over the HTTP contract.

Offers rates open loop, keeps every raw sample of every rate, and states the highest rate whose latency quantile meets
the objective, with goodput, p50, p99 and the stages of the Server-Timing header at that rate. Called by the harness.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loadtests import report, workload
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import holds
from loadtests.bench.sweep import parse_rates, search, sweep
from loadtests.bench.targets import Aim
from loadtests.open_loop import OpenLoopOptions, run_open_loop
from loadtests.samples import RunResult
from loadtests.schedule import Arrivals, LoadError


class HttpOptions(BaseModel):
    """Options of the `http` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = "http://127.0.0.1:8000"
    rate: float = Field(20.0, gt=0)
    """First rate of the search, requests/s."""
    rates: str | None = None
    """Rates to offer in place of the search, "50,100,200"; one rate is a plain measurement."""
    max_rate: float = Field(2000.0, gt=0)
    duration_s: float = Field(10.0, gt=0, le=600)
    warmup_s: float = Field(3.0, ge=0, le=120)
    settle_s: float = Field(1.0, ge=0, le=60)
    """Pause between rates, so that one overload does not spill into the next figure."""
    objective_ms: float = Field(200.0, gt=0)
    """Bound on the latency quantile."""
    quantile: float = Field(0.99, gt=0, lt=1)
    deadline_ms: int = Field(800, ge=1)
    """Sent with each call; goodput counts answers inside it."""
    attempts: int = Field(3, ge=1, le=10)
    """Runs at one rate while the client itself was late; all of them are kept."""
    lag_p99_bound_ms: float = Field(5.0, gt=0)
    timeout_s: float = Field(5.0, gt=0, le=120)
    max_in_flight: int = Field(512, ge=1, le=10_000)
    arrivals: Arrivals = Arrivals.POISSON
    seed: int = 0
    users: str = "943"
    """A number of ids ("1" … "943", as in MovieLens-100K) or a file with one id a line."""
    items: str = "1682"
    event_share: float = Field(0.1, ge=0, le=1)
    stream_share: float = Field(0.0, ge=0, le=1)
    k: int = Field(10, ge=1)
    workload: Path | None = None
    """JSON lines of requests in place of generated ones."""
    min_rps: float | None = None
    """Aim for the highest rate; none by default."""
    allow_remote: bool = False
    api_key_env: str = "RAYCOMMEND_API_KEY"
    """Name of the environment variable with the credential, if it is set."""


def bench(context: BenchContext) -> None:
    """Run the benchmark `http`."""
    options = context.options(HttpOptions)
    runs: dict[float, str] = {}  # rate → file of its last run
    every: list[str] = []
    invalid: dict[float, list[str]] = {}

    def probe(rate: float) -> bool:
        for attempt in range(1, options.attempts + 1):
            if every:
                time.sleep(options.settle_s)
            run = _offer(options, rate, number=len(every))
            runs[rate] = context.save_run(f"rate-{rate:g}-{attempt}", run)
            every.append(runs[rate])
            invalid[rate] = report.invalid_because(run)
            held = holds(run, objective_ms=options.objective_ms, q=options.quantile)
            context.tell(_line(run, options, rate, held=held))
            if held is not None:
                return held
        return False

    if options.rates:
        best = sweep(probe, parse_rates(options.rates))
    else:
        best = search(probe, options.rate, max_rate=options.max_rate)
    shown = best if best is not None else min(runs)
    context.invalid += [f"{shown:g}/s: {reason}" for reason in invalid[shown]]
    context.facts["rate_of_figures_rps"] = shown
    context.facts["rates_the_client_could_not_offer"] = sorted(rate for rate, why in invalid.items() if why)
    _targets(context, options, every, runs[shown])


def _offer(options: HttpOptions, rate: float, *, number: int) -> RunResult:
    count = min(workload.MAX_REQUESTS, int(rate * (options.duration_s + options.warmup_s) * 1.5) + 50)
    if options.workload is not None:
        requests = workload.load(options.workload)
    else:
        mix = workload.Mix(
            event_share=options.event_share,
            stream_share=options.stream_share,
            k=options.k,
            deadline_ms=options.deadline_ms,
        )
        now_ms = int(time.time() * 1000)
        requests = workload.generate(
            workload.ids_from(options.users),
            workload.ids_from(options.items),
            count,
            mix=mix,
            seed=options.seed + number,
            run_id=f"bench-{now_ms}",
            now_ms=now_ms,
        )
    return run_open_loop(_open_loop(options, rate, number), requests)


def _open_loop(options: HttpOptions, rate: float, number: int) -> OpenLoopOptions:
    same = {"url", "duration_s", "warmup_s", "timeout_s", "max_in_flight", "arrivals", "allow_remote"}
    shared = options.model_dump(include=same | {"lag_p99_bound_ms"})
    key = os.environ.get(options.api_key_env) or None
    return OpenLoopOptions(rate_rps=rate, seed=options.seed + number, api_key=key, **shared)


def _line(run: RunResult, options: HttpOptions, rate: float, *, held: bool | None) -> str:
    summary = report.summarise(run, deadline_ms=options.deadline_ms)
    lists = {k: v["p99"]["value"] for k, v in summary["latency_ms"].items()}
    text = ", ".join(f"{kind} p99 {'–' if ms is None else f'{ms:.1f} ms'}" for kind, ms in lists.items())
    verdict = {True: "held", False: "not held", None: f"invalid: {'; '.join(summary['invalid_because'])}"}[held]
    return f"{rate:g}/s: goodput {summary['goodput_rps']['value']:.1f}/s, {text}: {verdict}"


def _targets(context: BenchContext, options: HttpOptions, every: list[str], shown: str) -> None:
    aim = Aim(at_least=options.min_rps) if options.min_rps else None
    context.target(
        "max_rate_rps", "highest_rate", *every, aim=aim, objective_ms=options.objective_ms, q=options.quantile
    )
    context.target("goodput_rps", "goodput", shown, deadline_ms=options.deadline_ms)
    context.target("p50_ms", "latency_quantile", shown, q=0.5)
    tail = Aim(at_most=options.objective_ms) if options.quantile == 0.99 else None
    context.target("p99_ms", "latency_quantile", shown, q=0.99, aim=tail)
    context.target("client_lag_p99_ms", "client_lag_quantile", shown, q=0.99)
    table = RunResult.load(context.folder / shown).table
    for stage in report.stage_names(table):
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            context.target(f"stage_{stage}_{name}_ms", "stage_quantile", shown, stage=stage, q=q)
    lists = report.measured(table, report.LIST_KINDS)
    if not len(lists["index"]):
        raise LoadError("the workload holds no list calls, so there is nothing to hold against the objective")
