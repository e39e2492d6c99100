"""Benchmark `client`: how much the load client itself can send, so that no later figure is the client's.

Offers rising rates to the cheapest asyncio server in a process of its own, and compares the client's median latency
at a low rate with what `wrk` sees of the same server, round by round, where `wrk` is installed. Called by the harness.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from loadtests import report, workload
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import holds
from loadtests.bench.sweep import parse_rates, sweep
from loadtests.bench.targets import Aim
from loadtests.http1 import Connection, Exchange, Outcome, now_ns
from loadtests.open_loop import OpenLoopOptions, run_open_loop
from loadtests.samples import RunResult
from loadtests.schedule import NS, LoadError

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


class ClientOptions(BaseModel):
    """Options of the `client` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rates: str = "500,1000,1500,2000,3000,4000,5000,6000,8000"
    duration_s: float = Field(3.0, gt=0, le=60)
    warmup_s: float = Field(0.5, ge=0, le=10)
    objective_ms: float = Field(10.0, gt=0)
    """A rate counts while p99 from the intended time stays below it and the client's lag below 5 ms."""
    low_rate: float = Field(200.0, gt=0)
    """Rate of the comparison with wrk, requests/s."""
    round_s: float = Field(1.0, gt=0, le=10)
    """Length of one round of that comparison."""


def bench(context: BenchContext) -> None:
    """Run the benchmark `client`."""
    options = context.options(ClientOptions)
    runs: list[str] = []
    requests = workload.generate(workload.ids_from("943"), workload.ids_from("1682"), 5000)
    with _loopback_server() as url:

        def probe(rate: float) -> bool:
            run = _offer(url, requests, rate, options.duration_s, options.warmup_s, seed=len(runs))
            runs.append(context.save_run(f"rate-{rate:g}", run))
            held = holds(run, objective_ms=options.objective_ms)
            context.tell(f"{rate:g}/s: {'held' if held else 'not held'}")
            return bool(held)

        best = sweep(probe, parse_rates(options.rates))
        if best is not None:
            shown = f"rate-{best:g}.parquet"
            context.target("p99_at_ceiling_ms", "latency_quantile", shown, q=0.99)
            context.target("lag_p99_at_ceiling_ms", "client_lag_quantile", shown, q=0.99)
        aim = Aim(at_least=1000)
        context.target("ceiling_rps", "highest_rate", *runs, aim=aim, objective_ms=options.objective_ms)
        _beside_wrk(context, options, url, requests)


def _beside_wrk(context: BenchContext, options: ClientOptions, url: str, requests: Sequence[workload.Request]) -> None:
    seeds = count(100)

    def ours() -> list[float]:
        run = _offer(url, requests, options.low_rate, options.round_s, 0.2, seed=next(seeds))
        values: list[float] = report.latency_ms(report.measured(run.table)).tolist()
        return values

    # wrk sends the next request when the last was answered, so neither side ever sleeps. The same from us is the like
    # for like; the open loop beside it shows what waking up costs at a low rate.
    arms = {"ours": ours, "closed": lambda: _closed_loop_ms(url, requests[0], options.round_s)}
    wrk = shutil.which("wrk")
    context.facts["wrk"] = wrk is not None
    if wrk:
        arms["wrk"] = lambda: [_wrk_p50_ms(wrk, url, options.round_s)]
    raw = context.interleave("low-rate", arms, warmup=0)  # each arm warms itself
    context.target("p50_at_low_rate_ms", "arm", raw, name="ours")
    context.target("closed_loop_p50_ms", "arm", raw, name="closed")
    if wrk:
        context.target("wrk_p50_ms", "arm", raw, name="wrk")
        context.target("p50_over_wrk", "paired_ratio", raw, over="ours", under="wrk")
        context.target("closed_loop_p50_over_wrk", "paired_ratio", raw, over="closed", under="wrk")


def _offer(
    url: str, requests: Sequence[workload.Request], rate: float, duration_s: float, warmup_s: float, *, seed: int
) -> RunResult:
    options = OpenLoopOptions(url=url, rate_rps=rate, duration_s=duration_s, warmup_s=warmup_s, seed=seed)
    return run_open_loop(options, requests)


def _closed_loop_ms(url: str, request: workload.Request, seconds: float) -> list[float]:
    """Return the ms of requests sent one after the other on one connection of the client."""
    host = url.partition("//")[2]
    payload = request.encode(host)

    async def talk() -> list[float]:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[list[float]] = loop.create_future()
        times: list[float] = []
        until = now_ns() + int(seconds * NS)

        def on_done(connection: Connection, exchange: Exchange) -> None:
            times.append((exchange.done_ns - exchange.sent_ns) / 1e6)
            if exchange.outcome is not Outcome.ANSWERED:
                ended.set_exception(LoadError("the loopback server did not answer"))
            elif exchange.done_ns < until:
                connection.begin(Exchange(0, payload))
            else:
                ended.set_result(times)

        address, _, port = host.rpartition(":")
        _, connection = await loop.create_connection(lambda: Connection(on_done, lambda _: None), address, int(port))
        connection.begin(Exchange(0, payload))
        try:
            return await asyncio.wait_for(ended, seconds + 30)
        finally:
            connection.abandon()

    return asyncio.run(talk())


def _wrk_p50_ms(wrk: str, url: str, seconds: float) -> float:
    """Return the median of one closed-loop connection; wrk counts from the moment it sends."""
    command = [wrk, "-t1", "-c1", f"-d{max(1, round(seconds))}s", "--latency", url + "/v1/recommend"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=True)
    except subprocess.SubprocessError as error:
        raise LoadError(f"wrk did not run: {error}") from error
    found = re.search(r"^\s+50%\s+([0-9.]+)(us|ms|s)\s*$", done.stdout, re.MULTILINE)
    if found is None:
        raise LoadError("wrk printed no median")
    return float(found[1]) * _UNITS_MS[found[2]]


@contextlib.contextmanager
def _loopback_server() -> Iterator[str]:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "loadtests.bench.loopback"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise LoadError("the loopback server did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
