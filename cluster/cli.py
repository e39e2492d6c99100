"""The `raycommend` command. Every command takes `--env`, `--set section.field=value` and `--json`.

Errors an operator can put right are one sentence and exit code 1; anything else is a traceback, because it is a bug.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import release_commands
from cluster.config import Settings
from cluster.console import answer_table, result, say, stdout, timings
from cluster.errors import OperatorError
from cluster.operating import Env, Json, Set
from cluster.operating import operating as _operating

_SUITED = {"online-retail": "shop"}
"""Environments that suit a data set better than `local`, where none is named."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Real-time recommendations with reasons, on Ray.")
release_commands.add_to(app)


@app.command()
def demo(
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
    once: Annotated[bool, typer.Option("--once", help="One round, then stop everything.")] = False,
) -> None:
    """Prepare what is missing, start, ask, click, ask again; then stay up until Ctrl-C."""
    from cluster.demo import run_demo

    with _operating(env, set_, json=json) as settings:
        run_demo(settings, once=once, as_json=json)


@app.command()
def up(env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """Start everything and stay until Ctrl-C."""
    from cluster.stack import Stack

    with _operating(env, set_, json=json) as settings, Stack(settings, say=say) as stack:
        if json:
            result({"ok": True, "url": stack.url})
        else:
            stdout.print(f"{stack.url}  (docs: {stack.url}/docs)  Ctrl-C stops everything")
        signal.pause()


@app.command()
def down(env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """End exactly what `up` started in this state folder, wherever it was started from."""
    from cluster.ledger import Ledger

    with _operating(env, set_, json=json, secrets=False) as settings:
        ended = Ledger(settings.state).end_all(grace_s=20.0)
        if json:
            result({"ok": True, "ended": [{"pid": e.pid, "name": e.name, "killed": e.killed} for e in ended]})
        elif ended:
            stdout.print(f"ended {len(ended)} processes")
        else:
            stdout.print("nothing was running")


@app.command()
def status(env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """Show what runs, whether it is ready, and which release it serves. Exit code 3 when nothing runs."""
    from cluster.client import ApiClient
    from cluster.ledger import Ledger
    from cluster.stack import api_url, running

    with _operating(env, set_, json=json, secrets=False) as settings:
        processes = Ledger(settings.state).alive()
        up_now = running(settings)
        state: dict[str, Any] = ApiClient(api_url(settings)).ready() if up_now else {"ready": False}
        if json:
            listed = [{"pid": p.pid, "name": p.name, "kind": p.kind} for p in processes]
            result({"running": up_now, **state, "processes": listed})
        else:
            stdout.print(f"{'running' if up_now else 'not running'}: {len(processes)} processes of {settings.state}")
            for name, value in state.items():
                stdout.print(f"  {name}: {value}")
        if not up_now:
            raise typer.Exit(3)


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="movielens-100k, -small, online-retail, amazon-industrial or generic.")],
    path: Annotated[Path | None, typer.Option(help="File or folder of the data set.")] = None,
    items: Annotated[Path | None, typer.Option(help="generic: items as JSON lines or Parquet.")] = None,
    events: Annotated[Path | None, typer.Option(help="generic: events as JSON lines or Parquet.")] = None,
    reviews: Annotated[Path | None, typer.Option(help="generic: reviews as JSON lines, Parquet or CSV.")] = None,
    max_bad_rows: Annotated[int | None, typer.Option(help="Fail above this many bad rows.", min=0)] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Import a data set into the state folder. Bad rows go to a rejects file, numbered; none is dropped silently."""
    from cluster.prepare import import_dataset

    with _operating(env, set_, json=json) as settings:
        paths = {"path": path, "items": items, "events": events, "reviews": reviews}
        dataset = import_dataset(settings, name, paths=paths, max_bad_rows=max_bad_rows)
        counts = {"items": len(dataset.items), "events": len(dataset.events), "left_out": dict(dataset.left_out)}
        counts |= {"reviews": sum(map(len, dataset.reviews.values()))} if reviews is not None else {}
        if json:
            result({"ok": True, "name": dataset.name, **counts})
        else:
            shown = ", ".join(f"{count} {what}" for what, count in counts.items() if what != "left_out")
            stdout.print(f"{dataset.name}: {shown}; {dataset.licence}")
            for reason, count in dataset.left_out.items():
                stdout.print(f"  left out: {count} ({reason})")


@app.command()
def build(
    dataset: Annotated[str | None, typer.Option(help="Imported data set; the default is cluster.dataset.")] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Build a release: catalog, embeddings, index, behaviour, statistics, ranker. Reuses what is unchanged."""
    from cluster.prepare import build as build_release

    with _operating(env, set_, json=json) as settings:
        report = build_release(settings, dataset=dataset)
        release = report.release
        if json:
            steps = [
                {"name": s.name, "ref": s.ref, "seconds": round(s.seconds, 2), "reused": s.reused} for s in report.steps
            ]
            result({"ok": True, "release": release.release_id, "notes": dict(release.notes), "steps": steps})
        else:
            stdout.print(f"release {release.release_id}")


@app.command()
def recommend(
    user: Annotated[str | None, typer.Option(help="User id.")] = None,
    session: Annotated[str | None, typer.Option(help="Session id.")] = None,
    query: Annotated[str | None, typer.Option(help="Steer by text.")] = None,
    k: Annotated[int, typer.Option(help="How many items.", min=1, max=100)] = 10,
    explain: Annotated[bool, typer.Option(help="Wait for reasons by the language model.")] = True,
    users: Annotated[Path | None, typer.Option(help="Offline: a file of user ids, one a line; needs --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Offline: the Parquet file to write.")] = None,
    url: Annotated[str | None, typer.Option(help="Where the API is; the default is this machine's.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="RAYCOMMEND_API_KEY", help="Credential.")] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Ask a running deployment for recommendations, or write those of many users to a file with Ray Data."""
    from cluster.client import ApiClient
    from cluster.stack import api_url

    with _operating(env, set_, json=json) as settings:
        if users is not None or out is not None:
            _recommend_users(settings, users, out, k=k, json=json)
            return
        api = ApiClient(url or api_url(settings), api_key=api_key)
        wish: dict[str, Any] = {"user_id": user, "session_id": session, "query": query, "k": k}
        wish = {name: value for name, value in wish.items() if value is not None}
        answer = api.with_reasons(wish) if explain else api.recommend(wish)
        if json:
            result(answer)
        else:
            stdout.print(answer_table(answer, title="Recommendations"))
            stdout.print(f"[dim]{timings(answer)}[/dim]")
            if answer["degraded"]:
                stdout.print(f"degraded: {', '.join(answer['degraded_reasons'])}")


def _recommend_users(settings: Settings, users: Path | None, out: Path | None, *, k: int, json: bool) -> None:
    from cluster.offline import recommend_users

    if users is None or out is None:
        raise OperatorError("--users and --out go together: a file of user ids, and the Parquet file to write")
    facts = recommend_users(settings, users.resolve(), out.resolve(), k=k)
    if json:
        result({"ok": True, "out": str(out), **facts})
    else:
        stdout.print(f"{out}: {facts['rows']} rows for {facts['users']} users of release {facts['release']}")


@app.command()
def ingest(
    kafka: Annotated[str, typer.Option(help="Kafka brokers: host:port, separated by commas.")],
    topic: Annotated[str, typer.Option(help="Topic; a message is one event as POST /v1/events takes it.")],
    group: Annotated[str, typer.Option(help="Consumer group that holds the offsets.")] = "raycommend",
    tenant: Annotated[str, typer.Option(help="Tenant whose events these are.")] = "main",
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Stop when nothing is left.")] = False,
    properties: Annotated[Path | None, typer.Option(help="JSON file of librdkafka properties (TLS, SASL).")] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Take events from Kafka into the store until Ctrl-C; offsets are committed after the write."""
    from cluster.ingest import ingest_kafka

    with _operating(env, set_, json=json) as settings:
        options = {"group": group, "tenant": tenant, "until_empty": until_empty, "properties": properties}
        state = ingest_kafka(settings, servers=kafka, topic=topic, tell=_tell_ingest, **options)  # type: ignore[arg-type]
        if json:
            result({"ok": True, **state})


def _tell_ingest(state: dict[str, Any]) -> None:
    say(", ".join(f"{name} {value}" for name, value in state.items()))


@app.command()
def evaluate(
    dataset: Annotated[
        str, typer.Option(help="ml-100k, online-retail, amazon-industrial or one you imported.")
    ] = "ml-100k",
    seeds: Annotated[int, typer.Option(help="Tie-breaking seeds.", min=1, max=5)] = 5,
    ablate: Annotated[bool, typer.Option(help="Source by source, and weights by state against one.")] = False,
    validation: Annotated[bool, typer.Option(help="Ask for the events before the test events.")] = False,
    summaries: Annotated[
        Path | None, typer.Option(help="Also with the interests of this file (explain --summaries --before-test).")
    ] = None,
    student: Annotated[int | None, typer.Option(help="amazon-industrial: also distil so many layers.", min=1)] = None,
    cascade: Annotated[int | None, typer.Option(help="Only the cascade of the settings, by so many users.")] = None,
    env: Annotated[str | None, typer.Option("--env", help="As elsewhere; by default what suits the data set.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure recommendation quality through the real pipeline, beside baselines computed in the same run."""
    from loadtests.bench.harness import run_bench

    with _operating(env or _SUITED.get(dataset, "local"), set_) as settings:
        options = {"dataset": dataset, "seeds": seeds, "ablate": ablate, "validation": validation, "student": student}
        options |= {"summaries": str(summaries.resolve())} if summaries is not None else {}
        options |= {"cascade": cascade} if cascade is not None else {}
        tree = settings.model_dump(mode="json")
        raise typer.Exit(run_bench("quality", state=settings.state, json=json, options=options, settings=tree))


@app.command()
def explain(
    warm: Annotated[bool, typer.Option("--warm", help="Fill the reason cache of the running deployment.")] = False,
    summaries: Annotated[
        Path | None, typer.Option(help="Write what users are interested in, in words, to this Parquet file.")
    ] = None,
    reviews: Annotated[str | None, typer.Option(help="Find what the reviews of this imported data set praise.")] = None,
    before_test: Annotated[bool, typer.Option("--before-test", help="Summaries of what `evaluate` may know.")] = False,
    users: Annotated[int, typer.Option(help="How many of the most active users.", min=1)] = 100,
    most: Annotated[int, typer.Option(help="--warm: at most this many reasons.", min=1, max=100_000)] = 1000,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Write likely reasons (--warm), users' interests (--summaries FILE) or what reviews praise (--reviews DATASET)."""
    from cluster.explain import explain as explain_ahead

    with _operating(env, set_, json=json) as settings:
        wish: dict[str, Any] = {"summaries": summaries, "reviews": reviews, "before_test": before_test}
        report = explain_ahead(settings, warm=warm, users=users, most=most, say=say, **wish)
        if json:
            result({"ok": True, **report})


@app.command()
def clusters(
    top: Annotated[int, typer.Option(help="Labels and items per cluster.", min=1, max=50)] = 5,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Show the user clusters of the latest release: size, and the labels and items that set each apart."""
    from cluster.user_clusters import clusters_table, user_clusters

    with _operating(env, set_, json=json, secrets=False) as settings:
        report = user_clusters(settings, top=top)
        if json:
            result(report)
        else:
            stdout.print(clusters_table(report))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A benchmark, `list`, or `verify FOLDER`.")] = "list",
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run a benchmark; further options are the benchmark's own. The last line is JSON with its targets."""
    from loadtests.bench.harness import list_benches, run_bench
    from loadtests.bench.verify import verify

    with _operating(env, set_, json=json) as settings:
        if name == "list":
            if json:
                result({"benches": [{"name": one.name, "summary": one.summary} for one in list_benches()]})
                return
            for one in list_benches():
                stdout.print(f"{one.name:<12} {one.summary}", soft_wrap=True)
            return
        if name == "verify":
            if len(context.args) != 1:
                raise OperatorError("bench verify takes the folder of one run")
            raise typer.Exit(verify(Path(context.args[0]), json=json))
        tree = settings.model_dump(mode="json")
        raise typer.Exit(
            run_bench(name, state=settings.state, json=json, options=_options(context.args), settings=tree)
        )


def _options(arguments: list[str]) -> dict[str, str]:
    """Read a benchmark's own options: `--name value`, `--name=value`, `--name` alone for yes, `--option name=value`.

    The last form is what a result records as its command.
    """
    options: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise OperatorError(f"{argument}: a benchmark's options look like --rate 50")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if name == "option":
            name, equals, value = value.partition("=")
            if not equals:
                raise OperatorError(f"--option {name}: looks like --option rate=50")
        options[name.replace("-", "_")] = value
    return options


def main() -> None:
    """Entry point of the `raycommend` command."""
    sys.exit(app())


if __name__ == "__main__":
    main()
