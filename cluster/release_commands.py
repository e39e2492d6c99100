"""Commands about releases: making new vectors, and what is published. Added to the `raycommend` command."""

from __future__ import annotations

from typing import Annotated

import typer

from cluster.console import result, stdout
from cluster.operating import Env, Json, Set, operating


def reembed(
    full: Annotated[bool, typer.Option("--full", help="Embed everything, not only what changed.")] = False,
    encoder: Annotated[str | None, typer.Option(help="URI of another encoder.")] = None,
    catalog: Annotated[
        str | None, typer.Option(help="Items of the data set from here: Parquet, JSON lines or Arrow, any fsspec URL.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Imported data set; the default is cluster.dataset.")] = None,
    max_bad_rows: Annotated[int | None, typer.Option(help="Fail above this many bad rows.", min=0)] = None,
    env: Env = "local",
    set_: Set = None,
    json: Json = False,
) -> None:
    """Embed what changed of the catalog with Ray Data, and make a release of it; resumes after a kill."""
    from cluster.reembed import Wish, reembed

    with operating(env, set_, json=json) as settings:
        wish = Wish(full=full, encoder=encoder, catalog=catalog, dataset=dataset, max_bad_rows=max_bad_rows)
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


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(reembed)
