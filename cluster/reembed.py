"""The body of `raycommend reembed`: the catalog's vectors anew with Ray Data, and a release of them.

Everything else of the release is made by the same builder as `build`, which reuses what is unchanged. A ranker reads
vectors, so it is kept while the encoder stays the same and trained anew for another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import Pace, say
from cluster.prepare import build_release, keep_release
from cluster.ray_job import job_ray
from cluster.workspace import Workspace
from models.encoder import load_encoder
from models.releases import Release
from pipelines.build import BuildReport
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import RayRunner, WorkerPlace, items_per_s
from pipelines.embedding.source import read_items
from serve.auth import DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class Wish:
    """What `reembed` is asked for."""

    full: bool = False
    """Embed everything, whatever is known."""
    encoder: str | None = None
    """URI of another encoder."""
    catalog: str | None = None
    """File or folder (any fsspec URL) whose items replace those of the data set."""
    dataset: str | None = None
    """Imported data set; the default is `cluster.dataset`."""
    max_bad_rows: int | None = None
    """Most bad rows of `catalog` that are left out."""


def reembed(settings: Settings, wish: Wish) -> tuple[BuildReport, dict[str, Any]]:
    """Make a release with new vectors; return its report and how fast it went. Publishes where a cluster runs."""
    served = settings.models.encoder.uri
    if wish.encoder is not None:
        settings = with_encoder(settings, wish.encoder)
    workspace = Workspace(settings)
    before = workspace.newest_release()
    with job_ray(settings, say=say):
        dataset = _dataset(settings, workspace, wish)
        runner = RayRunner(_places(settings, workspace), encoder_of(settings, workspace), settings.pipelines.embedding)
        embedder = Embedder(
            workspace.artifacts(),
            workspace.encoder_spec(),
            runner,
            previous=None if before is None else before.artifacts["embeddings"],
            full=wish.full,
        )
        with Pace(say) as pace:
            kept = before if _same_encoder(workspace, before) else None
            report = build_release(settings, dataset, embedder=embedder, progress=pace.report, keep_ranker_of=kept)
    other = settings.models.encoder.uri != served
    if other:
        say(f"to serve it, start `up` with --set models.encoder.uri={settings.models.encoder.uri}")
    # What runs embeds queries with the encoder it was started with, so it cannot serve vectors of another one.
    keep_release(settings, report.release, serve=not other)
    return report, {"warm_items_per_s": items_per_s(runner.times), **pace.facts()}


def with_encoder(settings: Settings, uri: str) -> Settings:
    """Return the settings with another encoder."""
    encoder = settings.models.encoder.model_copy(update={"uri": uri})
    return settings.model_copy(update={"models": settings.models.model_copy(update={"encoder": encoder})})


def encoder_of(settings: Settings, workspace: Workspace) -> Any:
    """Return what loads the encoder in a worker; it pickles."""
    of = settings.models.encoder
    return partial(
        load_encoder,
        workspace.encoder_folder(),
        max_tokens=of.max_tokens,
        batch_size=of.batch_size,
        threads=settings.pipelines.embedding.threads,
    )


def _places(settings: Settings, workspace: Workspace) -> Any:
    return partial(WorkerPlace, settings.artifacts_url, workspace.artifact_cache, DEFAULT_TENANT)


def _dataset(settings: Settings, workspace: Workspace, wish: Wish) -> Dataset:
    """Return the data set, its items replaced by those of the catalog that was named; that is kept for later builds."""
    dataset = workspace.dataset(wish.dataset)
    if wish.catalog is None:
        return dataset
    limit = settings.pipelines.max_bad_rows if wish.max_bad_rows is None else wish.max_bad_rows
    items = read_items(wish.catalog, rejects=workspace.data / "catalog.rejects.jsonl", max_bad_rows=limit)
    there = {item.item_id for item in items}
    kept = np.fromiter((i in there for i in dataset.events.item_ids), bool, len(dataset.events))
    left_out = dict(dataset.left_out)
    if not kept.all():
        left_out["event on an item that the catalog no longer holds"] = int((~kept).sum())
    changed = replace(dataset, items=items, events=dataset.events.take(np.flatnonzero(kept)), left_out=left_out)
    write_dataset(changed, workspace.dataset_folder(wish.dataset))
    return changed


def _same_encoder(workspace: Workspace, before: Release | None) -> bool:
    """Whether the release before has vectors that mix with ours, so that its ranker can read them."""
    if before is None:
        return False
    space = workspace.artifacts().meta(before.artifacts["embeddings"]).get("space")
    return bool(space == workspace.encoder_spec().space)
