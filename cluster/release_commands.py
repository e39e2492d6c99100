"""Commands about releases: new vectors, a new ranker, and what is published. Added to the `raycommend` command."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from cluster.console import result, stdout
from cluster.operating import Env, Json, Set, operating

NOT_PUBLISHED = 4
"""Exit code of a training whose ranker lost."""


class Kind(StrEnum):
    """Back ends of the ranker."""

    compressed = "compressed"
    text = "text"


def reembed(
    full: Annotated[bool, typer.Option("--full", help="Embed everything, not only what changed.")] = False,
    encoder: Annotated[str | None, typer.Option(help="URI of another encoder.")] = None,
    catalog: Annotated[
        str | None, typer.Option(help="Items of the data set from here: Parquet, JSON lines or Arrow, any fsspec URL.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Imported data set; the default is cluster.dataset.")] = None,
    max_bad_rows: Annotated[int | None, typer.Option(help="Fail above this many bad rows.", min=0)] = None,
    watching: Annotated[bool, typer.Option("--watch", help="Go on: a release whenever enough changes wait.")] = False,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Embed what changed of the catalog with Ray Data, and make a release of it; resumes after a kill."""
    from cluster.reembed import Wish, reembed, watch

    with operating(env, set_, json=json) as settings:
        wish = Wish(full=full, encoder=encoder, catalog=catalog, dataset=dataset, max_bad_rows=max_bad_rows)
        if watching:
            watch(settings, wish)
        report, pace = reembed(settings, wish)
        release = report.release
        embeddings = next(step for step in report.steps if step.name == "embeddings")
        if json:
            steps = [{"name": s.name, "seconds": round(s.seconds, 2), "reused": s.reused} for s in report.steps]
            embedded = 0 if embeddings.reused else embeddings.meta["embedded"]
            counts = {"items": embeddings.meta["items"], "embedded": embedded, "pace": pace, "steps": steps}
            result({"ok": True, "release": release.release_id, **counts})
        else:
            stdout.print(f"release {release.release_id}")


def train(
    kind: Annotated[Kind, typer.Option(help="Which back end to train.")] = Kind.compressed,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Go on from the ranker served now, on later events only.")
    ] = False,
    student: Annotated[
        int | None, typer.Option(help="Distil the text ranker served now into so many layers.", min=1)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Imported data set; the default is cluster.dataset.")] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train a ranker and serve it where it wins on later events; resumes after a kill.

    Exit code 0: it is published, or nothing is new since the one served was trained. 4: it lost to retrieval order or
    to the ranker served now, or there was too little to learn from; nothing was published.
    """
    from cluster.train import LOST, Wish, train

    with operating(env, set_, json=json) as settings:
        report = train(settings, Wish(kind=kind.value, incremental=incremental, student=student, dataset=dataset))
        if json:
            result({"ok": report["outcome"] != LOST, **report})
        else:
            stdout.print(f"{report['outcome']}: {report['said']}", soft_wrap=True)
        if report["outcome"] == LOST:
            raise typer.Exit(NOT_PUBLISHED)


def rollback(
    to: Annotated[str | None, typer.Option(help="A release to go to; the default is the one before.")] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Serve the release before again; the replicas hold it, so that is a matter of a second."""
    from cluster.publish import rollback

    with operating(env, set_, json=json) as settings:
        release, swap = rollback(settings, to=to)
        if json:
            facts = {"epoch": swap.epoch, "replicas": swap.replicas, "moved": swap.moved}
            result({"ok": True, "release": release.release_id, **facts})
        else:
            stdout.print(f"release {release.release_id}")


releases = typer.Typer(no_args_is_help=True, help="What was built, what of it is whole, and what may go.")


@releases.command("list")
def list_(env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """List releases, newest first."""
    from cluster.releases import list_releases

    with operating(env, set_, json=json) as settings:
        rows = list_releases(settings)
        if json:
            result({"ok": True, "releases": rows})
        for row in () if json else rows:
            marks = " ".join(mark for mark in ("serving", "held") if row[mark])
            stdout.print(f"{row['release']}  {row['items']} items of {row['dataset']}  {marks}")


@releases.command()
def show(release: str, env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """Show one release: its artifacts with their manifests."""
    from cluster.releases import show_release

    with operating(env, set_, json=json) as settings:
        found = show_release(settings, release)
        if json:
            result({"ok": True, **found})
        else:
            stdout.print_json(data=found, default=str)


@releases.command()
def verify(release: str, env: Env = "local", set_: Set = None, json: Json = False) -> None:
    """Check every file of a release against its digest. Exit code 1 where one does not match."""
    from cluster.releases import verify_release

    with operating(env, set_, json=json) as settings:
        wrong = verify_release(settings, release)
        if json:
            result({"ok": not wrong, "release": release, "wrong": wrong})
        else:
            stdout.print("\n".join(wrong) or f"{release} is whole", markup=False)
        if wrong:
            raise typer.Exit(1)


@releases.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Remove releases and artifacts that nothing needs; never what is served, held, or the release before."""
    from cluster.releases import collect

    with operating(env, set_, json=json) as settings:
        gone = collect(settings, dry_run=dry_run)
        if json:
            result({"ok": True, "dry_run": dry_run, **gone})
        else:
            stdout.print(f"{len(gone['releases'])} releases, {len(gone['artifacts'])} artifacts")


def manifest(
    kind: Annotated[str, typer.Argument(help="rayjob: several nodes, once; cronjob: one pod, on a schedule.")],
    image: Annotated[str, typer.Option(help="Container image with this package installed.")],
    name: Annotated[str, typer.Option(help="Of the job.")] = "raycommend-reembed",
    claim: Annotated[str, typer.Option(help="PersistentVolumeClaim of the state folder.")] = "raycommend-state",
    secret: Annotated[str, typer.Option(help="Secret with RAYCOMMEND_STORE_URL and the others.")] = "raycommend",
    schedule: Annotated[str, typer.Option(help="cronjob: when it runs.")] = "0 3 * * *",
    nodes: Annotated[int, typer.Option(help="rayjob: worker pods.", min=1, max=1000)] = 1,
    env: Env = "prod",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Print the Kubernetes manifest of `reembed` as YAML, made from the settings."""
    import yaml

    from cluster.manifests import Wanted, manifest

    with operating(env, set_, json=json, secrets=False) as settings:
        wanted = Wanted(
            image=image,
            env=env,
            overrides=set_ or (),
            name=name,
            claim=claim,
            secret=secret,
            schedule=schedule,
            nodes=nodes,
        )
        made = manifest(kind, settings, wanted)  # type: ignore[arg-type]
        if json:
            result({"ok": True, "manifest": made})
        else:
            typer.echo(yaml.safe_dump(made, sort_keys=False, width=1000), nl=False)


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(reembed)
    app.command()(train)
    app.command()(rollback)
    app.command()(manifest)
    app.add_typer(releases, name="releases")
