"""Benchmark `swap`: releases are swapped and taken back under load; no request may fail, and few may notice.

The same load undisturbed, then with five swaps and a rollback, each to a release whose artifacts no replica has loaded
before, then undisturbed again: half of it before and half after, so that a machine that changes meanwhile is no
difference. Publishing (canary, two phases) happens in a process of its own, as an operator's would. Every measured
answer of the run with swaps must name a release that existed, and carry titles of that release and of no other:
`swap_marks` says what that shows, and what it does not. The cluster of the state folder is started when it does not
run; one that runs answers with marked titles meanwhile, and serves what it served before in the end. Loopback only.
Called by the harness.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.publish import current, publish, rollback, waiting_changes
from cluster.workspace import Workspace
from loadtests import report, stats, workload
from loadtests.bench.freshness import api_client, cluster_of
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import holds, measure
from loadtests.bench.swap_marks import MARK, answers_by_release, marked_copy, new_stamp, state_releases
from loadtests.bench.sweep import search
from loadtests.bench.targets import Aim
from loadtests.open_loop import OpenLoopOptions, run_open_loop
from loadtests.samples import RunResult
from loadtests.schedule import LoadError
from loadtests.stats import Estimate
from models.releases import Release

SWAPS = 5
_ASKED, _ASKED_EVERY_S = 10, 0.1
"""Answers the publishing process looks at after a swap; apart, so that they are no load of their own."""


class SwapOptions(BaseModel):
    """Options of the `swap` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rate: float | None = Field(None, gt=0)
    """Requests/s; none searches for the capacity within `objective_ms` first and takes half of it."""
    start_rate: float = Field(20.0, gt=0)
    """First rate of that search."""
    duration_s: float = Field(60.0, ge=20, le=600)
    """Of the run with swaps, and of the two halves without taken together."""
    objective_ms: float = Field(200.0, gt=0)
    """Bound on the p99 that defines the capacity."""
    seed: int = 0


@measure
def failed_requests(path: Path) -> Estimate:
    """Measured list calls and events without a whole 2xx answer."""
    columns = report.measured(RunResult.load(path).table)
    failed = int(np.isinf(report.latency_ms(columns)).sum())
    return Estimate(float(failed), len(columns["index"]), (None, None))


@measure
def p99_ratio(path: Path, *others: Path) -> Estimate:
    """p99 of the list calls of one run over that of others taken together."""
    mine, theirs = pooled_quantile(path, q=0.99).value, pooled_quantile(*others, q=0.99).value
    return Estimate(None if mine is None or not theirs else mine / theirs, 1 + len(others), (None, None))


@measure
def pooled_quantile(*paths: Path, q: float) -> Estimate:
    """Quantile of the latency of the list calls of several runs in ms, failures as infinitely slow."""
    tables = (RunResult.load(path).table for path in paths)
    latencies = [report.latency_ms(report.measured(table, report.LIST_KINDS)) for table in tables]
    return stats.quantile(np.concatenate(latencies), q)


def bench(context: BenchContext) -> None:
    """Run the benchmark `swap`."""
    options = context.options(SwapOptions)
    settings = Settings.model_validate(dict(context.settings))
    with cluster_of(context) as url:
        rate = options.rate or _half_of_capacity(context, options, url)
        context.facts["rate_rps"] = rate
        served, _ = current(settings)
        marks = _copies(settings)
        changed = waiting_changes(settings, now_ms=int(time.time() * 1000))[0] > 0
        try:
            before = _load(options, url, rate, options.duration_s / 2, seed=options.seed)
            with _start(context, settings, url, list(marks), options.duration_s) as publisher:
                swapped = _load(options, url, rate, options.duration_s, seed=options.seed + 1)
                said = _finish(publisher)
            after = _load(options, url, rate, options.duration_s / 2, seed=options.seed + 2)
        finally:
            _put_back(settings, served)
    runs = {"before-swaps": before, "with-swaps": swapped, "after-swaps": after}
    for name, run in runs.items():
        context.invalid += [f"{name}: {reason}" for reason in report.invalid_because(run)]
    saved = {name: context.save_run(name, run) for name, run in runs.items()}
    _state(context, said, saved)
    known = Workspace(settings).releases().names()
    context.facts["answers_by_release"] = answers_by_release(swapped)
    state_releases(context, saved["with-swaps"], known=known, marks=marks, changed_items=changed)


def _state(context: BenchContext, said: Mapping[str, Any], runs: Mapping[str, str]) -> None:
    busy, quiet = runs["with-swaps"], (runs["before-swaps"], runs["after-swaps"])
    context.facts["swaps"] = said["swaps"]
    if len(said["swaps"]) != SWAPS + 1:
        context.invalid.append(f"{len(said['swaps'])} of {SWAPS + 1} swaps were made: {said['error']}")
    context.target("swap_failed_requests", "failed_requests", busy, aim=Aim(at_most=0))
    context.target("swap_p99_ratio", "p99_ratio", busy, *quiet, aim=Aim(at_most=1.5))
    context.target("p99_with_swaps_ms", "latency_quantile", busy, q=0.99)
    context.target("p99_without_swaps_ms", "pooled_quantile", *quiet, q=0.99)
    if said["swaps"]:
        took = context.save_array("swap-seconds", [one["seconds"] for one in said["swaps"]])
        context.target("swap_s", "array_mean", took)


def _half_of_capacity(context: BenchContext, options: SwapOptions, url: str) -> float:
    def probe(rate: float) -> bool:
        time.sleep(1.0)
        held = holds(_load(options, url, rate, 8.0, seed=int(rate)), objective_ms=options.objective_ms)
        context.tell(f"{rate:g}/s: {'held' if held else 'not held'}")
        return bool(held)

    best = search(probe, options.start_rate, max_rate=2000.0, bisections=1)
    if best is None:
        raise LoadError("no rate holds the objective: there is no capacity to take half of")
    context.facts["capacity_rps"] = best
    return best / 2


def _load(options: SwapOptions, url: str, rate: float, duration_s: float, *, seed: int) -> RunResult:
    now_ms = int(time.time() * 1000)
    requests = workload.generate(
        workload.ids_from("943"),
        workload.ids_from("1682"),
        int(rate * (duration_s + 5) * 1.5) + 50,
        mix=workload.Mix(event_share=0.1, stream_share=0.0, k=10, deadline_ms=800),
        seed=seed,
        run_id=f"bench-{now_ms}",
        now_ms=now_ms,
    )
    key = os.environ.get("RAYCOMMEND_API_KEY") or None
    open_loop = OpenLoopOptions(
        url=url,
        rate_rps=rate,
        duration_s=duration_s,
        warmup_s=3.0,
        seed=seed,
        api_key=key,
        max_in_flight=512,
        title_mark=MARK,
    )
    return run_open_loop(open_loop, requests)


def _copies(settings: Settings) -> dict[str, str]:
    """Make releases of the current artifacts under new names; return the mark of each by name, in the order to swap."""
    workspace = Workspace(settings)
    artifacts, book = workspace.artifacts(), workspace.releases()
    release = workspace.newest_release()
    if release is None:
        raise LoadError("there is no release: run `raycommend build` first")
    marks = {}
    for number in range(SWAPS):
        stamp = new_stamp(number)
        copy = marked_copy(artifacts, release, stamp)
        book.save(copy)
        marks[copy.release_id] = stamp
    book.save(release)  # the latest stays what it was
    return marks


def _put_back(settings: Settings, served: Release | None) -> None:
    """Make the latest release what `up` wants again, and serve what was `served` before the copies."""
    book = Workspace(settings).releases()
    if (latest := book.latest()) is not None:
        book.save(latest)  # and not the copy that the rollback went back to
    if served is not None:
        publish(settings, served, check=False)


def _start(
    context: BenchContext, settings: Settings, url: str, releases: Sequence[str], duration_s: float
) -> subprocess.Popen[str]:
    work = {"settings": settings.model_dump(mode="json"), "url": url, "releases": releases, "duration_s": duration_s}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "loadtests.bench.swap"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(work))
    process.stdin.close()
    return process


def _finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    said = process.stdout.read()
    process.stdout.close()
    if process.wait(60) != 0:
        raise LoadError(f"the publishing process ended with {process.returncode}")
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def _publisher(work: Mapping[str, Any]) -> dict[str, Any]:
    """Swap through the releases at even intervals, and go back once; ask for recommendations after each."""
    settings = Settings.model_validate(work["settings"])
    book = Workspace(settings).releases()
    swaps: list[dict[str, Any]] = []
    error = ""
    every_s = work["duration_s"] / (SWAPS + 2)
    began = time.monotonic()
    with api_client(work["url"]) as api:
        for number, name in enumerate([*work["releases"], None], start=1):
            time.sleep(max(0.0, began + number * every_s - time.monotonic()))
            started = time.monotonic()
            try:
                release: Release | None = None if name is None else book.get(name)
                served, swap = rollback(settings) if release is None else (release, publish(settings, release))
            except Exception as failure:
                # Whatever it is, the figures say that a swap is missing, and why.
                error = f"{type(failure).__name__}: {failure}"
                break
            took = time.monotonic() - started
            seen = [_release_of_an_answer(api) for _ in range(_ASKED)]
            swaps.append({"seconds": took, "replicas": swap.replicas, "rollback": name is None, "moved": swap.moved})
            swaps[-1]["last_answer_is_new"] = seen[-1] == served.release_id
    return {"swaps": swaps, "error": error}


def _release_of_an_answer(api: httpx.Client) -> str | None:
    time.sleep(_ASKED_EVERY_S)
    named: str | None = api.post("/v1/recommend", json={"user_id": "1", "k": 5}).json().get("release")
    return named


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_publisher(json.loads(sys.stdin.read()))) + "\n")
