"""Trains the compressed ranker from an event log and decides whether it may be served.

Sources and statistics are fitted on events before the examples; half of the validation users stop the training and
calibrate it, the other half, untouched until then, decides. Knows nothing of artifacts or releases: it fills a
folder. Called by the `train` command and by `build`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import Statistics, fit_statistics
from models.catalog import ItemCatalog
from models.events import EventLog
from models.index import FaissIndex, FlatIndex, VectorIndex
from models.index_build import build_faiss
from models.media.layout import Layout
from models.rankers.calibration import PlattScaling, expected_calibration_error, fit_platt
from models.rankers.compressed import CompressedModel
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.inputs import (
    MAX_NUMBERS,
    POPULARITY_COLUMNS,
    id_slots,
    label_slots,
    label_vocabulary,
    number_inputs,
)
from models.rankers.network import NetworkShape, Parameters, initialise
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.training.examples import Progress, RankingLists, build_lists
from pipelines.training.fit import ItemInputs, fit_attention, fit_head, score_fused, score_head, set_scaling
from pipelines.training.measures import gains, paired_bootstrap
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Part, TrainingSplit, split_events

METRICS_FILE = "metrics.json"
_EXACT_INDEX_UP_TO = 20_000

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Sources:
    """How the sources behind the training lists are fitted and merged: as the release will serve them."""

    retrieval: RetrievalSettings
    behaviour: BehaviourSettings
    half_life_days: float
    layout: Layout | None


@dataclass(frozen=True, slots=True)
class _Items:
    """What is known of items when the examples begin."""

    catalog: ItemCatalog
    embeddings: Floats
    statistics: Statistics

    def inputs(self, model: CompressedModel) -> ItemInputs:
        return ItemInputs(
            self.embeddings,
            label_slots(self.catalog, model.labels),
            number_inputs(self.catalog, self.statistics, model.numbers),
            id_slots(self.catalog, model.known_ids),
        )


def train_ranker(
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: Floats,
    folder: Path,
    *,
    settings: TrainingSettings | None = None,
    retrieval: RetrievalSettings | None = None,
    behaviour: BehaviourSettings | None = None,
    half_life_days: float = 14.0,
    layout: Layout | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on `log` (sorted by time), write the ranker and `metrics.json` into `folder`, return the metrics.

    A release may name the ranker when `metrics["switch_on"]`: it is not below retrieval order on later
    events, and `beyond_chance` says whether the paired interval excludes a tie. Small or poor
    data raises nothing: `switch_on` is false, `reason` says why, and with too little of it there is no ranker.
    `retrieval`, `behaviour`, `half_life_days` (of recent popularity) and `layout` (of `embeddings`) must be those the
    release serves with: the ranker learns on their lists. Deterministic for a seed and a number of torch threads.
    """
    sources = _Sources(retrieval or RetrievalSettings(), behaviour or BehaviourSettings(), half_life_days, layout)
    metrics = _train(
        log,
        catalog,
        embeddings,
        folder,
        settings or TrainingSettings(),
        sources,
        seed=seed,
        progress=progress,
    )
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1, sort_keys=True))
    return metrics


def _train(
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: Floats,
    folder: Path,
    settings: TrainingSettings,
    sources: _Sources,
    *,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    started = time.monotonic()
    split = split_events(log, settings, seed=seed)
    facts = _facts(log, split, settings, seed)
    few = _too_few(len(split.of(Part.train)), len(split.of(Part.validate)), settings)
    if few is not None:
        return {**facts, "switch_on": False, "reason": few}
    statistics = fit_statistics(split.fit, catalog, half_life_days=sources.half_life_days)
    train, validate = _lists(split, catalog, embeddings, statistics, settings, sources, progress)
    facts |= {"train_lists": len(train), "examples_s": round(time.monotonic() - started, 1)}
    judge, decide = validate.take(validate.user % 2 == 0), validate.take(validate.user % 2 == 1)
    few = _too_few(len(train), min(int((part.target >= 0).sum()) for part in (judge, decide)), settings)
    if few is not None:
        return {**facts, "switch_on": False, "reason": few}
    items = _Items(catalog, embeddings, statistics)
    model, head = _fit(train, judge, items, settings, seed=seed, progress=progress)
    fused = score_fused(model.parameters, model.shape, items.inputs(model), decide)
    metrics = {**facts, **_verdict(model, head, fused, decide, settings, seed)}
    metrics["seconds"] = round(time.monotonic() - started, 1)
    model.save(folder)
    return metrics


def _lists(
    split: TrainingSplit,
    catalog: ItemCatalog,
    embeddings: Floats,
    statistics: Statistics,
    settings: TrainingSettings,
    sources: _Sources,
    progress: Progress | None,
) -> tuple[RankingLists, RankingLists]:
    """Build training and validation lists with sources that know only `split.fit`."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    behaviour = fit_behaviour(split.fit, catalog, sources.behaviour, vectors=embeddings)
    parts = (_index(embeddings), behaviour, statistics, sources.retrieval)
    engine = RetrievalEngine(catalog, embeddings, *parts, layout=sources.layout)
    fusion = FusionFeatures(catalog, embeddings, statistics)
    built = []
    # Many tiny matrix products: waking a second BLAS thread costs more than it brings.
    with threadpool_limits(limits=1, user_api="blas"):
        for part in (Part.train, Part.validate):
            lists = build_lists(
                split.of(part),
                engine,
                fusion,
                catalog,
                size=settings.list_size,
                exclude_seen=settings.exclude_seen,
                keep_missed=part == Part.validate,
                near_future=settings.near_future,
                near_future_weight=settings.near_future_weight,
                progress=progress,
            )
            built.append(lists)
    return built[0], built[1]


def _fit(
    train: RankingLists,
    judge: RankingLists,
    items: _Items,
    settings: TrainingSettings,
    *,
    seed: int,
    progress: Progress | None,
) -> tuple[CompressedModel, Parameters]:
    """Return the trained model and the parameters of the head as they were when it was trained alone."""
    model = _untrained(items, settings, seed)
    p, inputs = model.parameters, items.inputs(model)
    set_scaling(p, train)
    fit_head(p, train, judge, seed=seed)
    head = {n: t.clone() for n, t in p.items() if n.startswith("head.")}
    fit_attention(p, model.shape, inputs, train, judge, settings, seed=seed, progress=progress)
    return replace(model, calibration=_calibrate(score_fused(p, model.shape, inputs, judge), judge)), head


def _untrained(items: _Items, settings: TrainingSettings, seed: int) -> CompressedModel:
    labels, numbers = label_vocabulary(items.catalog), items.catalog.number_names[:MAX_NUMBERS]
    known = np.sort(items.catalog.hashes) if settings.id_vectors else np.empty(0, np.uint64)
    shape = NetworkShape(
        text_dim=items.embeddings.shape[1],
        labels=len(labels),
        numbers=POPULARITY_COLUMNS + len(numbers),
        features=len(FEATURE_NAMES),
        ids=len(known),
    )
    return CompressedModel(shape, initialise(shape, seed=seed), labels, numbers, known)


def _calibrate(logits: Floats, lists: RankingLists) -> PlattScaling | None:
    real = lists.rows >= 0
    return fit_platt(logits[real], _taken(lists)[real])


def _taken(lists: RankingLists) -> npt.NDArray[np.bool_]:
    taken: npt.NDArray[np.bool_] = np.arange(lists.rows.shape[1])[None, :] == lists.target[:, None]
    return taken


def _verdict(
    model: CompressedModel,
    head: Parameters,
    fused: Floats,
    decide: RankingLists,
    settings: TrainingSettings,
    seed: int,
) -> dict[str, Any]:
    """Compare retrieval order, head and fusion on lists nothing was chosen by."""
    base = gains(decide.merged, decide.target)
    alone = gains(score_head(head, decide), decide.target)
    together = gains(fused, decide.target)
    gap = paired_bootstrap(together, base, decide.user, rounds=settings.bootstrap_rounds, seed=seed)
    real = decide.rows >= 0
    error = None
    if model.calibration is not None:
        error = expected_calibration_error(model.calibration.apply(fused[real]), _taken(decide)[real])
    # The guard is "not below": on small data an honest gain is often within the noise, and the interval says so.
    reason = "" if gap.mean >= 0 else "the ranker is below retrieval order on later events"
    return {
        "retrieval_ndcg10": float(base.mean()),
        "head_ndcg10": float(alone.mean()),
        "fused_ndcg10": float(together.mean()),
        "fused_vs_retrieval": {"mean": gap.mean, "lower": gap.lower, "upper": gap.upper},
        "list_recall": float((decide.target >= 0).mean()),
        "calibration_error": error,
        "validation_lists": len(decide),
        "switch_on": gap.mean >= 0,
        "beyond_chance": gap.lower > 0,
        "reason": reason,
    }


def _facts(log: EventLog, split: TrainingSplit, settings: TrainingSettings, seed: int) -> dict[str, Any]:
    times = log.timestamps_ms
    return {
        "events": len(log),
        "fit_events": len(split.fit),
        "examples": len(split.examples),
        "data_window_ms": [int(times.min()), int(times.max())] if len(times) else None,
        "settings": settings.model_dump(),
        "seed": seed,
    }


def _too_few(train: int, validation: int, settings: TrainingSettings) -> str | None:
    if min(train, validation) >= settings.min_examples:
        return None
    return (
        f"{train} training and {validation} validation lists hold the item that was taken; "
        f"min_examples is {settings.min_examples}"
    )


def _index(embeddings: Floats) -> VectorIndex:
    if len(embeddings) <= _EXACT_INDEX_UP_TO:
        return FlatIndex(embeddings)
    return FaissIndex(build_faiss(embeddings).index, embeddings)
