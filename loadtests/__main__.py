"""Command line of the instruments: `python -m loadtests`.

Knows nothing of the cluster; everything goes over HTTP. `raycommend bench` is the same harness from the product's CLI.
"""

from __future__ import annotations

import json as jsonlib
import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from loadtests.schedule import Arrivals, LoadError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Open-loop load tests and benchmarks.",
)
State = Annotated[Path, typer.Option(help="State folder; raw samples of benchmarks go below it.")]
Json = Annotated[bool, typer.Option("--json", help="Print nothing but JSON.")]


@app.command()
def run(
    url: Annotated[str, typer.Option(help="Base URL.")] = "http://127.0.0.1:8000",
    rate: Annotated[float, typer.Option(help="Arrivals per second.")] = 20.0,
    duration_s: Annotated[float, typer.Option(help="Measured time.")] = 10.0,
    warmup_s: Annotated[float, typer.Option(help="Time before it, not measured.")] = 2.0,
    arrivals: Annotated[Arrivals, typer.Option(help="How arrivals are spaced.")] = Arrivals.POISSON,
    seed: Annotated[int, typer.Option(help="Seed of schedule and workload.")] = 0,
    max_in_flight: Annotated[int, typer.Option(help="More than this is dropped and counted.")] = 256,
    timeout_s: Annotated[float, typer.Option(help="From the intended send time.")] = 5.0,
    deadline_ms: Annotated[int, typer.Option(help="Sent with each call; goodput counts answers inside it.")] = 800,
    lag_p99_bound_ms: Annotated[float, typer.Option(help="A client later than this makes the run invalid.")] = 5.0,
    users: Annotated[str, typer.Option(help="Number of ids (1 … N) or a file with one id a line.")] = "943",
    items: Annotated[str, typer.Option(help="As --users, for events.")] = "1682",
    event_share: Annotated[float, typer.Option(help="Share of events.")] = 0.1,
    stream_share: Annotated[float, typer.Option(help="Share of streamed calls.")] = 0.0,
    workload_file: Annotated[Path | None, typer.Option(help="JSON lines in place of generated requests.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the raw samples in this Parquet file.")] = None,
    allow_remote: Annotated[bool, typer.Option("--allow-remote", help="Allow a host other than this one.")] = False,
    api_key_env: Annotated[str, typer.Option(help="Environment variable with the credential.")] = "RAYCOMMEND_API_KEY",
    json: Json = False,
) -> None:
    """Send by a schedule, measure from the intended send time. Exit code 1 when the run is invalid."""
    from loadtests import workload
    from loadtests.open_loop import OpenLoopOptions, run_open_loop

    options = OpenLoopOptions(
        url=url,
        rate_rps=rate,
        duration_s=duration_s,
        warmup_s=warmup_s,
        arrivals=arrivals,
        seed=seed,
        max_in_flight=max_in_flight,
        timeout_s=timeout_s,
        lag_p99_bound_ms=lag_p99_bound_ms,
        allow_remote=allow_remote,
        api_key=os.environ.get(api_key_env) or None,
    )
    if workload_file is not None:
        requests = workload.load(workload_file)
    else:
        mix = workload.Mix(event_share=event_share, stream_share=stream_share, deadline_ms=deadline_ms)
        count = max(1, min(workload.MAX_REQUESTS, int(rate * (duration_s + warmup_s) * 1.5) + 50))
        ids, now_ms = (workload.ids_from(users), workload.ids_from(items)), int(time.time() * 1000)
        requests = workload.generate(*ids, count, mix=mix, seed=seed, run_id=f"run-{now_ms}", now_ms=now_ms)
    result = run_open_loop(options, requests)
    if out is not None:
        result.save(out)
    _show(result, deadline_ms, json=json)


@app.command()
def report(
    samples: Annotated[Path, typer.Argument(help="Parquet file of a run.")],
    deadline_ms: Annotated[int, typer.Option(help="Deadline of the goodput.")] = 800,
    json: Json = False,
) -> None:
    """Recompute the report of a run from its raw samples."""
    from loadtests.samples import RunResult

    _show(RunResult.load(samples), deadline_ms, json=json)


@app.command()
def workload(
    out: Annotated[Path, typer.Argument(help="File to write, one request a line.")],
    count: Annotated[int, typer.Option(help="Number of requests.")] = 1000,
    users: Annotated[str, typer.Option(help="Number of ids (1 … N) or a file with one id a line.")] = "943",
    items: Annotated[str, typer.Option(help="As --users, for events.")] = "1682",
    event_share: Annotated[float, typer.Option(help="Share of events.")] = 0.1,
    stream_share: Annotated[float, typer.Option(help="Share of streamed calls.")] = 0.0,
    zipf: Annotated[float, typer.Option(help="Exponent of popularity, 0 = all alike.")] = 1.1,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Write a workload, the same one for the same seed."""
    from loadtests import workload as made

    mix = made.Mix(event_share=event_share, stream_share=stream_share, zipf=zipf)
    made.save(made.generate(made.ids_from(users), made.ids_from(items), count, mix=mix, seed=seed), out)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="Benchmark; `list` names them.")],
    option: Annotated[list[str] | None, typer.Option(help="key=value, repeatable.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Interleaved rounds.")] = None,
    state: State = Path(".raycommend"),
    json: Json = False,
) -> None:
    """Run a benchmark; the last line is JSON with every target."""
    from loadtests.bench.harness import list_benches, run_bench

    if name == "list":
        for one in list_benches():
            print(f"{one.name:12} {one.summary}")
        return
    pairs = [text.partition("=") for text in option or []]
    if any(not equals for _, equals, _ in pairs):
        raise LoadError("an --option looks like key=value")
    options = {key: value for key, _, value in pairs}
    raise typer.Exit(run_bench(name, state=state, json=json, options={**options, "rounds": rounds}))


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder of a benchmark.")], json: Json = False) -> None:
    """Recompute every figure of a benchmark from its raw samples; exit code 1 when one differs."""
    from loadtests.bench.verify import verify as check

    raise typer.Exit(check(folder, json=json))


def _show(result: object, deadline_ms: int, *, json: bool) -> None:
    from rich.console import Console

    from loadtests.report import render, summarise
    from loadtests.samples import RunResult

    assert isinstance(result, RunResult)
    summary = summarise(result, deadline_ms=deadline_ms)
    if json:
        print(jsonlib.dumps(summary))
    else:
        Console().print(render(summary))
    if not summary["valid"]:
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; what cannot run as asked is one sentence and exit code 2."""
    try:
        app()
    except (LoadError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
