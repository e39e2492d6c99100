"""Trains a text ranker from an event log and decides whether it may be served: alone it reads, fused it also counts.

It learns which of the items that look like a user's past was taken: what is asked of it when it serves. It reads no
source, so every event before the judging ones teaches. The sources of the fusion are fitted on events before; of the
users with later events one half fits the fusion and calibrates, the other decides. It starts from an encoder, a
reranker, or with `Origin.teacher` from a larger model whose scores it learns. Knows nothing of artifacts or releases:
it fills a folder. Called through `makers` and by the evaluation.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.events import EventLog
from models.retrieval.engine import RetrievalEngine
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import Progress
from pipelines.training.lists import Sources
from pipelines.training.settings import TextTrainingSettings, TrainingSettings
from pipelines.training.split import Example, Part, TrainingSplit, split_after, split_events
from pipelines.training.text_cases import TextCase, iter_cases, with_found
from pipelines.training.text_fit import fit_text
from pipelines.training.text_judge import judge_text
from pipelines.training.text_start import load_start, reader_for, teacher_of
from pipelines.training.text_workers import Work, fit_on_workers
from pipelines.training.text_world import TextWorld, text_world
from pipelines.training.train import METRICS_FILE

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a training starts from: a model folder, and `teacher`, whose scores it learns."""

    start: Path
    teacher: Path | None = None
    since_ms: int | None = None
    """Only later events are learned from: it goes on from what learned the earlier ones."""
    sources_until_ms: int | None = None
    """Up to when events fit the sources of the fusion; None leaves it to the split of the settings."""


def train_text_ranker(
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: Floats,
    folder: Path,
    origin: Origin,
    *,
    settings: TextTrainingSettings,
    training: TrainingSettings,
    sources: Sources,
    seed: int = 0,
    incumbent: Path | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on `log` (sorted by time), write the ranker and `metrics.json` into `folder`, return the metrics.

    `training` says how events are split. The metrics hold `fused_vs_incumbent` where `incumbent` can be scored (one of
    other vectors or features is not compared), and in `fused_vs_without_text` what reading brought. Small or poor
    data raises nothing: `switch_on` is false and `reason` says why. Deterministic for a seed and a number of torch
    threads; killed and called again with the same arguments and `checkpoint` it ends with the same bytes. Raises
    RankerError when `origin.start` is no model that can be trained.
    """
    started = time.monotonic()
    split = _split(log, origin, training, seed)
    metrics: dict[str, Any] = {
        "events": len(log),
        "fit_events": len(split.fit),
        "examples": len(split.examples),
        "settings": settings.model_dump(),
        "seed": seed,
        "since_ms": origin.since_ms,
    }
    world = text_world(split, catalog, embeddings, sources)
    train, judge, decide = _cases(split, world, settings, training, seed, taught=origin.teacher is not None)
    found = [sum(case.place >= 0 for case in part) for part in (judge, decide)]
    few = min(len(train), *found)
    if few < training.min_examples:
        reason = (
            f"{len(train)} training lists, and {found[0]} and {found[1]} validation lists that hold the item that was "
            f"taken; min_examples is {training.min_examples}"
        )
        metrics |= {"switch_on": False, "reason": reason}
    else:
        metrics |= _fit(train, world, folder, origin, settings, seed, checkpoint, progress)
        metrics |= judge_text(judge, decide, world, folder, settings, training, seed, incumbent, progress)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1, sort_keys=True))
    return metrics


def _split(log: EventLog, origin: Origin, training: TrainingSettings, seed: int) -> TrainingSplit:
    if origin.since_ms is not None:
        return split_after(log, origin.since_ms, training, seed=seed)
    if origin.sources_until_ms is not None:
        return split_after(log, origin.sources_until_ms, training, seed=seed, fitted=True)
    return split_events(log, training, seed=seed, fitted=True)


def _cases(
    split: TrainingSplit,
    world: TextWorld,
    settings: TextTrainingSettings,
    training: TrainingSettings,
    seed: int,
    *,
    taught: bool = False,
) -> tuple[list[TextCase], list[TextCase], list[TextCase]]:
    """Return training cases that hold what was taken, and the two halves of the later ones by user.

    A list that misses it would have an item of another kind in its place, and teach that what looks alike is wrong.
    Who is `taught` by a larger model learns its order of such lists too: they fill up what all steps together read.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    def cases(examples: Sequence[Example], retriever: RetrievalEngine, size: int) -> Iterator[TextCase]:
        order = np.random.default_rng(seed).permutation(len(examples))
        of = (examples[at] for at in order)
        return iter_cases(
            of, retriever, world.catalog, size=size, exclude_seen=training.exclude_seen, shown=split.shown
        )

    earlier, later = [e for e in split.examples if e.part != Part.validate], split.of(Part.validate)
    # Many tiny matrix products: waking a second BLAS thread costs more than it brings.
    with threadpool_limits(limits=1, user_api="blas"):
        every = cases(earlier, world.similar, settings.similar)
        most = settings.steps * settings.lists_per_step
        train, missed = _parted(every, most, spare=most if taught else 0, least=settings.width)
        train += missed[: most - len(train)]
        judge, decide = (
            with_found(
                cases([e for e in later if e.user % 2 == half], world.engine, settings.list_size),
                settings.validation_cases,
            )
            for half in (0, 1)
        )
    return train, judge, decide


def _parted(cases: Iterator[TextCase], most: int, *, spare: int, least: int) -> tuple[list[TextCase], list[TextCase]]:
    """Return the first `most` cases that hold what was taken, and up to `spare` others with `least` candidates."""
    found: list[TextCase] = []
    missed: list[TextCase] = []
    for case in cases:
        if case.place >= 0:
            found.append(case)
        elif len(missed) < spare and len(case.candidates) >= least:
            missed.append(case)
        if len(found) == most:
            break
    return found, missed


def _fit(
    train: Sequence[TextCase],
    world: TextWorld,
    folder: Path,
    origin: Origin,
    settings: TextTrainingSettings,
    seed: int,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> dict[str, Any]:
    began = time.monotonic()
    if settings.workers > 1:
        with tempfile.TemporaryDirectory() as place:
            kept = Path(place) if checkpoint is None else checkpoint.folder
            work = Work(origin.start, origin.teacher, settings, seed, kept)
            losses, trained = fit_on_workers(work, train, world.catalog, told=lambda step: _tell(progress, step))
            shutil.copytree(trained, folder, dirs_exist_ok=True)
    else:
        model, tokenizer = load_start(origin.start, settings, seed=seed)
        losses = fit_text(
            model,
            reader_for(model, tokenizer, world.catalog, settings),
            train,
            len(world.catalog),
            settings,
            seed=seed,
            teacher=None if origin.teacher is None else teacher_of(origin.teacher, world.catalog),
            checkpoint=checkpoint,
            progress=progress,
        )
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    pairs = len(losses) * settings.lists_per_step * settings.width
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(losses),
        "pairs": pairs,
        "layers": int(json.loads((folder / "config.json").read_text())["num_hidden_layers"]),
        "first_loss": float(np.mean(losses[:tenth])),
        "last_loss": float(np.mean(losses[-tenth:])),
        "training_s": round(time.monotonic() - began, 1),
    }


def _tell(progress: Progress | None, step: str) -> None:
    if progress is not None:
        progress(step, 0.0)
