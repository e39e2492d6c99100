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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import Statistics, fit_statistics
from models.candidates import Source
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.rankers.calibration import expected_calibration_error
from models.rankers.compressed import CONFIG_FILE, RankerError
from models.rankers.fusion import FusionFeatures
from models.rankers.load import load_ranker
from models.rankers.port import CrossEncoder
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.ablation import only
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import Progress, RankingLists
from pipelines.training.lists import Sources, vector_index
from pipelines.training.measures import gains, paired_bootstrap
from pipelines.training.settings import TextTrainingSettings, TrainingSettings
from pipelines.training.split import Example, Part, TrainingSplit, split_after, split_events
from pipelines.training.text_cases import TextCase, iter_cases, lists_of, with_found
from pipelines.training.text_fit import fit_text
from pipelines.training.text_fuse import fit_fusion, spread
from pipelines.training.text_start import load_start, reader_for, teacher_of
from pipelines.training.text_workers import Work, fit_on_workers
from pipelines.training.train import METRICS_FILE
from pipelines.training.verdict import verdict

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


@dataclass(frozen=True, slots=True)
class _World:
    """What is known of items and behaviour when the examples begin."""

    catalog: ItemCatalog
    embeddings: Floats
    statistics: Statistics
    engine: RetrievalEngine
    """All sources, as they will be served."""
    similar: RetrievalEngine
    """Items like the user's past, by what texts mean: no event decides what it finds."""
    layout: Layout | None

    def ranker(self, folder: Path) -> CrossEncoder:
        """Return the ranker in `folder` over these items. Raises RankerError where it reads others."""
        parts = (folder, self.catalog, self.embeddings, self.statistics)
        # Not the engine that happens to be fastest now: a training that is run again ends with the same bytes.
        return load_ranker(*parts, layout=self.layout, compute="transformers")


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

    `training` says how events are split. The metrics hold `fused_vs_incumbent` where `incumbent` can be scored; one of
    other vectors or features is not compared. Small or poor data raises nothing: `switch_on` is false and `reason` says
    why. Deterministic for a seed and a number of torch threads; killed and called again with the same arguments and
    `checkpoint` it ends with the same bytes. Raises RankerError when `origin.start` is no model that can be trained.
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
    world = _world(split, catalog, embeddings, sources)
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
        metrics |= _judge(judge, decide, world, folder, settings, training, seed, incumbent, progress)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1, sort_keys=True))
    return metrics


def score_cases(
    ranker: CrossEncoder,
    cases: Sequence[TextCase],
    size: int,
    *,
    missed: int = 0,
    told: Callable[[float], None] = lambda _: None,
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return `ranker`'s scores float32[cases, size], and for how many cases each one stands.

    No order can help a case that misses what was taken: only the first `missed` of them are scored, and stand for all.
    """
    out, stands = np.zeros((len(cases), size), np.float32), np.zeros(len(cases), np.int64)
    misses = [at for at, case in enumerate(cases) if case.place < 0]
    for at in misses[:missed]:
        stands[at] = max(1, round(len(misses) / min(missed, len(misses))))
    stands[[at for at, case in enumerate(cases) if case.place >= 0]] = 1
    for at in np.flatnonzero(stands):
        told(at / len(cases))
        out[at, : len(cases[at].candidates)] = ranker.score(cases[at].query, cases[at].candidates)
    return out, stands


def _split(log: EventLog, origin: Origin, training: TrainingSettings, seed: int) -> TrainingSplit:
    if origin.since_ms is not None:
        return split_after(log, origin.since_ms, training, seed=seed)
    if origin.sources_until_ms is not None:
        return split_after(log, origin.sources_until_ms, training, seed=seed, fitted=True)
    return split_events(log, training, seed=seed, fitted=True)


def _world(split: TrainingSplit, catalog: ItemCatalog, embeddings: Floats, sources: Sources) -> _World:
    statistics = fit_statistics(split.fit, catalog, half_life_days=sources.half_life_days)
    behaviour = fit_behaviour(split.fit, catalog, sources.behaviour, vectors=embeddings)
    index = vector_index(embeddings)

    def engine(retrieval: RetrievalSettings) -> RetrievalEngine:
        return RetrievalEngine(catalog, embeddings, index, behaviour, statistics, retrieval, layout=sources.layout)

    served, similar = engine(sources.retrieval), engine(only(sources.retrieval, Source.semantic))
    return _World(catalog, embeddings, statistics, served, similar, sources.layout)


def _cases(
    split: TrainingSplit,
    world: _World,
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
    world: _World,
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


def _judge(
    judge: Sequence[TextCase],
    decide: Sequence[TextCase],
    world: _World,
    folder: Path,
    settings: TextTrainingSettings,
    training: TrainingSettings,
    seed: int,
    incumbent: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Fit the fusion on one half, write `ranker.json`, and compare on the other."""

    def told(what: str) -> Callable[[float], None]:
        return lambda share: None if progress is None else progress(what, share)

    size, body = settings.list_size, {"backend": "text", "max_tokens": settings.max_tokens}
    (folder / CONFIG_FILE).write_text(json.dumps(body))
    text = world.ranker(folder)
    features = FusionFeatures(world.catalog, world.embeddings, world.statistics, layout=world.layout)
    first, second = (lists_of(part, features, size) for part in (judge, decide))
    missed = settings.validation_cases // 4
    scores, stands = score_cases(text, judge, size, missed=missed, told=told("fitting the fusion"))
    fusion = fit_fusion(scores, first, stands)
    (folder / CONFIG_FILE).write_text(json.dumps({**body, "fusion": fusion.to_json()}, indent=1, sort_keys=True))
    began = time.perf_counter()
    alone, stands = score_cases(text, decide, size, missed=missed, told=told("deciding"))
    pairs = sum(len(case.candidates) for case, counted in zip(decide, stands, strict=True) if counted)
    per_100_ms = (time.perf_counter() - began) * 1e5 / max(1, pairs)
    theirs = None
    if incumbent is not None:
        served = _served(incumbent, world)
        if served is not None:
            asked, _ = score_cases(served, decide, size, told=told("asking the ranker served now"))
            theirs = _hidden(asked, second)
    fused = _hidden(fusion.logits(alone, second.features), second)
    metrics = verdict(fused, second, incumbent=theirs, rounds=training.bootstrap_rounds, seed=seed)
    own, base = gains(_hidden(alone, second), second.target), gains(second.merged, second.target)
    gap = paired_bootstrap(own, base, second.user, rounds=training.bootstrap_rounds, seed=seed)
    error = None
    if fusion.calibration is not None:
        logits, taken = spread(fused, second, stands)
        error = expected_calibration_error(fusion.calibration.apply(logits), taken)
    return {
        **metrics,
        "text_ndcg10": float(own.mean()),
        "ms_per_100_candidates": round(per_100_ms, 1),
        "text_vs_retrieval": {"mean": gap.mean, "lower": gap.lower, "upper": gap.upper},
        "calibration_error": error,
    }


def _served(folder: Path, world: _World) -> CrossEncoder | None:
    """Return the ranker served now, or None where it reads other vectors or features: it cannot be compared."""
    try:
        return world.ranker(folder)
    except RankerError:
        return None


def _hidden(scores: Floats, lists: RankingLists) -> Floats:
    """Return the scores with -inf at padding."""
    return np.where(lists.rows >= 0, scores, -np.inf).astype(np.float32)
