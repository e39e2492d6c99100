"""The body of `raycommend reembed`: the catalog's vectors anew with Ray Data, and a release of them.

Everything else of the release is made by the same builder as `build`, which reuses what is unchanged. A ranker
learned from one data set and reads vectors, so it is kept while both stay the same, else made anew.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import Pace, say
from cluster.errors import OperatorError
from cluster.operating import FIXABLE
from cluster.prepare import build_release, keep_release
from cluster.publish import refuse_other_encoder, release_now, waiting_changes
from cluster.ray_job import job_ray
from cluster.stack import online
from cluster.workspace import Workspace
from models.artifacts import ArtifactStore
from models.encoder import SentenceTransformerEncoder, load_encoder
from models.hub import resolve
from models.media.items import load_item_encoder
from models.releases import Release
from pipelines.build import BuildReport
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import RayRunner, WorkerPlace, items_per_s
from pipelines.embedding.source import read_items
from pipelines.index_shards import RayPieces
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
    of_settings = settings.models.encoder.uri
    if wish.encoder is None:
        refuse_other_encoder(settings)
    else:
        settings = with_encoder(settings, wish.encoder)
    workspace = Workspace(settings)
    before = workspace.newest_release()  # of vectors the newest are best, whatever is served: they go by their text
    with job_ray(settings, say=say):
        dataset = _dataset(settings, workspace, wish)
        runner = RayRunner(_places(settings, workspace), encoder_of(settings, workspace), settings.pipelines.embedding)
        embedder = Embedder(
            workspace.artifacts(),
            workspace.encoder_spec(),
            runner,
            previous=None if before is None else before.artifacts["embeddings"],
            full=wish.full,
            max_unread=settings.pipelines.embedding.max_unread_media,
        )
        with Pace(say) as pace:
            try:
                report = build_release(
                    settings,
                    dataset,
                    embedder=embedder,
                    progress=pace.report,
                    keep_ranker_of=kept_ranker(settings, dataset),
                    pieces=_pieces(settings, workspace),
                )
            finally:
                _keep_unread(workspace, runner)
    keep_release(settings, report.release)
    if (now := settings.models.encoder.uri) != of_settings:
        say(f"set models.encoder.uri={now} from now on: `build` and `train` go by it, and it is {of_settings}")
        _tell_late_changes(settings, report.release)
    return report, {"warm_items_per_s": items_per_s(runner.times), **pace.facts()}


def watch(
    settings: Settings, wish: Wish, *, rounds: int | None = None, sleep: Callable[[float], None] = time.sleep
) -> int:
    """Make a release whenever enough changes of items wait, or one waited long enough; return how many were made.

    Ends after `rounds` looks; None goes on until it is interrupted. What goes wrong, with a release or with the store,
    is tried again at the next look, and said when it changes.
    """
    made, looks, trouble = 0, 0, ""
    while rounds is None or looks < rounds:
        looks += 1
        try:
            if _due(settings, quiet=bool(trouble)):
                reembed(settings, wish)
                made += 1
            trouble = ""
        except FIXABLE as error:
            if str(error) != trouble:
                say(f"no release was made, trying again: {error}")
            trouble = str(error)
        sleep(settings.pipelines.embedding.watch_poll_s)
    return made


def _due(settings: Settings, *, quiet: bool) -> bool:
    """Whether enough changes of items wait, or one waited long enough; says so unless it is to be `quiet`."""
    of = settings.pipelines.embedding
    waiting, oldest_s = waiting_changes(settings, now_ms=time.time_ns() // 1_000_000)
    due = waiting >= of.watch_changes or (waiting > 0 and oldest_s >= of.watch_age_s)
    if due and not quiet:
        say(f"{waiting} changes of items wait, the oldest for {oldest_s:.0f} s")
    return due


def with_encoder(settings: Settings, uri: str) -> Settings:
    """Return the settings with another encoder and its dimension.

    Raises HubError where it cannot be fetched, OperatorError where it cannot be loaded: before anything is embedded.
    """
    if uri == settings.models.encoder.uri:
        return settings
    try:
        dimension = SentenceTransformerEncoder(resolve(uri, cache=Workspace(settings).models)).dimension
    except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
        raise OperatorError(f"the encoder {uri} cannot be loaded: {type(error).__name__}: {error}") from error
    encoder = settings.models.encoder.model_copy(update={"uri": uri, "dimension": dimension})
    return settings.model_copy(update={"models": settings.models.model_copy(update={"encoder": encoder})})


def _tell_late_changes(settings: Settings, release: Release) -> None:
    """Say how many items changed while `release` was built: their vectors are of the encoder before."""
    if not online(settings):
        return
    waiting, _ = waiting_changes(settings, now_ms=time.time_ns() // 1_000_000)
    if waiting:
        say(
            f"{waiting} changes of items came after those in {release.release_id}; what the encoder before made of "
            "them is compared with nothing: another `reembed` by this encoder takes them in"
        )


def encoder_of(settings: Settings, workspace: Workspace) -> Any:
    """Return what loads the encoder in a worker; it pickles."""
    of = settings.models.encoder
    text = partial(
        load_encoder,
        workspace.encoder_folder(),
        max_tokens=of.max_tokens,
        batch_size=of.batch_size,
        threads=settings.pipelines.embedding.threads,
    )
    media = settings.models.media
    return partial(load_item_encoder, text, workspace.media_folders(), media) if media.chosen else text


def _keep_unread(workspace: Workspace, runner: RayRunner) -> None:
    """Write the pictures and sounds that could not be read to a rejects file, each with its reason."""
    if runner.unread:
        rejects = workspace.data / "media.rejects.jsonl"
        rejects.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps({"media": what, "reason": why}) for what, why in runner.unread)
        rejects.write_text("\n".join(lines) + "\n", encoding="utf-8")
        say(f"{len(runner.unread)} pictures and sounds could not be read: see {rejects}")


def _pieces(settings: Settings, workspace: Workspace) -> RayPieces:
    place = partial(ArtifactStore, settings.artifacts_url, cache=workspace.artifact_cache, tenant=DEFAULT_TENANT)
    of = settings.pipelines.embedding
    # What an encoder actor asks for: where replicas hold the other CPUs, a task that asks for more would wait for ever.
    return RayPieces(place, workers=of.workers, cpus=of.cpus_per_worker)


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


def kept_ranker(settings: Settings, dataset: Dataset) -> Release | None:
    """Return the release whose ranker goes on: the one served now, where it stays; after a rollback not the newest."""
    before = release_now(settings, reachable=online(settings))
    return before if _ranker_stays(Workspace(settings), before, dataset) else None


def _ranker_stays(workspace: Workspace, before: Release | None, dataset: Dataset) -> bool:
    """Whether the ranker of the release before goes on: it is of this data set and reads vectors like ours."""
    if before is None or before.notes.get("dataset") != dataset.name:
        return False
    space = workspace.artifacts().meta(before.artifacts["embeddings"]).get("space")
    return bool(space == workspace.encoder_spec().space)
