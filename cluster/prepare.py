"""Making what `up` serves: import a data set, build a release. The bodies of the `import` and `build` commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.aspects import labels_from_reviews
from cluster.config import Settings
from cluster.console import bars, say
from cluster.errors import OperatorError
from cluster.publish import canary, folded, publish
from cluster.ray_job import training_ray
from cluster.stack import online
from cluster.workspace import Workspace
from models.hub import resolve, resolve_generator
from models.media.layout import Layout
from models.progress import Progress
from models.releases import Release
from pipelines.build import Builder, BuildReport, StepReport
from pipelines.dataset import Dataset, write_dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import InlineRunner
from pipelines.importers import IMPORTERS, ImportFailed
from pipelines.index_shards import PieceRunner
from pipelines.makers import RankerMaker
from pipelines.second_ranker import Served


def import_dataset(
    settings: Settings, name: str, *, paths: Mapping[str, Path | None], max_bad_rows: int | None = None
) -> Dataset:
    """Import `name` into the state folder and return it. Raises OperatorError for a wrong name, path or data."""
    workspace = Workspace(settings)
    importer = IMPORTERS.get(name)
    if importer is None:
        raise OperatorError(f"no importer {name}: there is {', '.join(IMPORTERS)}")
    with bars() as progress:
        given: dict[str, Path] = {}
        for option in importer.inputs:
            path = paths.get(option)
            if path is None and importer.default_uri is None:
                raise OperatorError(f"import {name} needs --{option}: {importer.summary}")
            given[option] = path or resolve(importer.default_uri or "", cache=workspace.models, progress=progress)
        more = {option: path for option in importer.optional if (path := paths.get(option)) is not None}
        unused = [o for o, p in paths.items() if p is not None and o not in (*importer.inputs, *importer.optional)]
        if unused:
            raise OperatorError(f"import {name} takes no --{unused[0]}")
        limit = settings.pipelines.max_bad_rows if max_bad_rows is None else max_bad_rows
        rejects = workspace.data / f"{name}.rejects.jsonl"
        rejects.parent.mkdir(parents=True, exist_ok=True)
        try:
            dataset = importer.run(*given.values(), **more, rejects=rejects, max_bad_rows=limit, progress=progress)
        except (ImportFailed, OSError) as error:
            raise OperatorError(str(error)) from error
    # A release remembers its data set by name, so the name is that of the folder, whatever the files were called.
    dataset = replace(dataset, name=name)
    write_dataset(dataset, workspace.dataset_folder(name))
    return dataset


def build(settings: Settings, *, dataset: str | None = None) -> BuildReport:
    """Build a release of a data set, keep it as the latest, and publish it where a cluster runs."""
    workspace = Workspace(settings)
    data = workspace.dataset(dataset)
    with bars() as progress, training_ray(settings, say=say):
        report = build_release(settings, data, embedder=embedder_here(settings), progress=progress)
    keep_release(settings, report.release)
    return report


def embedder_here(settings: Settings) -> Embedder:
    """Return what embeds new texts in this process, on every core, and takes over the vectors of known ones."""
    workspace = Workspace(settings)
    before = workspace.newest_release()
    return Embedder(
        workspace.artifacts(),
        workspace.encoder_spec(),
        InlineRunner(lambda: workspace.encoder(threads=os.cpu_count() or 1)),
        previous=None if before is None else before.artifacts["embeddings"],
        max_unread=settings.pipelines.embedding.max_unread_media,
    )


def build_release(
    settings: Settings,
    data: Dataset,
    *,
    embedder: Embedder,
    progress: Progress,
    keep_ranker_of: Release | None = None,
    pieces: PieceRunner | None = None,
    ranker: RankerMaker | None = None,
    served: Served | None = None,
) -> BuildReport:
    """Make what is missing of a release of `data`; nothing is kept as the latest or published."""
    workspace = Workspace(settings)
    before = workspace.releases().latest()
    report = Builder(
        workspace.artifacts(),
        settings=settings.pipelines,
        retrieval=settings.models.retrieval,
        encoder=workspace.encoder,
        encoder_uri=settings.models.encoder.uri,
        text_ranker=text_ranker_of(settings, workspace),
        ranker=ranker,
        ranking=settings.models.ranker,
        embedder=embedder,
        keep_ranker_of=keep_ranker_of,
        served=served,
        pieces=pieces,
        progress=progress,
        on_step=_tell,
    ).run(
        data,
        parent=None if before is None else before.release_id,
        fold=folded(settings, data, reachable=online(settings)),
        labels=labels_from_reviews(workspace, data),
    )
    _check_dimension(settings, workspace, report.release)
    return report


def keep_release(settings: Settings, release: Release) -> None:
    """Keep a release as the latest, and publish it where there is a store."""
    workspace = Workspace(settings)
    if online(settings):
        swap = publish(settings, release)
        said = f"{swap.replicas} replicas held it before the pointer moved" if swap.moved else "it was current already"
        say(f"published as epoch {swap.epoch}: {said}")
    else:
        canary(settings, release, None)
    workspace.releases().save(release)


def text_ranker_of(settings: Settings, workspace: Workspace) -> tuple[str, Callable[[], Path]] | None:
    """Return the text ranker that the settings use and how to fetch it, or None for the compressed back end alone."""
    of = settings.models.ranker
    if of.text_uri is None or (of.backend != "text" and not of.cascade.candidates):
        return None
    uri = of.text_uri
    return uri, lambda: resolve_generator(uri, cache=workspace.models)


def _check_dimension(settings: Settings, workspace: Workspace, release: Release) -> None:
    meta = workspace.artifacts().meta(release.artifacts["embeddings"])
    layout = Layout.from_json(meta.get("layout"))
    dimension = meta["dimension"] if layout is None else layout.text
    if dimension != settings.models.encoder.dimension:
        raise OperatorError(
            f"texts have {dimension} dimensions in the index, models.encoder.dimension = "
            f"{settings.models.encoder.dimension}: set it to the encoder's"
        )


def _tell(step: StepReport) -> None:
    what = "reused" if step.reused else f"{step.seconds:.1f} s"
    say(f"{step.name:<11} {what}  {_summary(step.meta)}")


def _summary(meta: Mapping[str, Any]) -> str:
    shown = {k: v for k, v in meta.items() if k in ("items", "events", "dimension", "kind")}
    metrics = meta.get("metrics") or {}
    shown |= {k: v for k, v in metrics.items() if isinstance(v, bool | int | float | str)}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in list(shown.items())[:6])
