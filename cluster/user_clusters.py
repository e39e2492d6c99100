"""The report of user clusters: the body of the `clusters` command."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.workspace import Workspace
from models.behaviour.clusters import UserClusters
from models.behaviour.portraits import Mark, portraits
from models.catalog import ItemCatalog


def user_clusters(settings: Settings, *, top: int) -> dict[str, Any]:
    """Return the clusters of the latest release as plain values. Raises OperatorError without a release."""
    workspace = Workspace(settings)
    release = workspace.releases().latest()
    if release is None:
        raise OperatorError("no release yet: run `raycommend build` first")
    artifacts = workspace.artifacts()
    catalog = ItemCatalog(artifacts.get(release.artifacts["catalog"]).path)
    try:
        clusters = UserClusters.load(artifacts.get(release.artifacts["behaviour"]).path)
    except FileNotFoundError as error:
        raise OperatorError("the latest release is older than user clusters: run `raycommend build`") from error
    found = [
        {
            "cluster": one.cluster,
            "users": one.users,
            "share": round(one.share, 4),
            "labels": [_mark(m) for m in one.labels],
            "items": [_mark(m) for m in one.items],
        }
        for one in portraits(clusters, catalog, top=top)
    ]
    return {"release": release.release_id, "users": int(clusters.sizes.sum()), "clusters": found}


def clusters_table(report: dict[str, Any]) -> Table:
    """Return the report as a table for people."""
    table = Table(title=f"User clusters of {report['release']}", title_justify="left", show_lines=True)
    table.add_column("#", justify="right")
    table.add_column("users", justify="right")
    table.add_column("share", justify="right")
    table.add_column("labels that stand out (times the share of all)", ratio=2)
    table.add_column("items that stand out (share of its users)", ratio=4)
    for one in report["clusters"]:
        labels = ", ".join(f"{m['name']} ×{m['lift']:.1f}" for m in one["labels"])
        items = ", ".join(f"{m['name']} {m['share']:.0%}" for m in one["items"])
        table.add_row(str(one["cluster"]), str(one["users"]), f"{one['share']:.1%}", labels, items)
    return table


def _mark(mark: Mark) -> dict[str, Any]:
    return {"name": mark.name, "share": round(mark.share, 4), "lift": round(mark.lift, 3)}
