"""Trains the compressed ranker from an event log and decides whether it may be served.

Sources and statistics are fitted on events before the examples; half of the validation users stop the training, then
teach too and calibrate, the other half, untouched until then, decides. It can go on from the ranker served now and
learn from later events only. Knows nothing of artifacts or releases: it fills a folder. Called through `makers` by
`train` and `build`.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import BehaviourSettings
from models.behaviour.statistics import Statistics, fit_statistics
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.rankers.compressed import CompressedModel, RankerError
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.inputs import (
    MAX_NUMBERS,
    POPULARITY_COLUMNS,
    id_slots,
    label_slots,
    label_vocabulary,
    number_inputs,
    slots_of,
)
from models.rankers.network import NetworkShape, Parameters, initialise
from models.retrieval.settings import RetrievalSettings
from pipelines.errors import TrainingError
from pipelines.training.calibrate import calibration_error, calibrations
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import Progress, RankingLists
from pipelines.training.fit import (
    HEAD_EPOCHS,
    ItemInputs,
    fit_attention,
    fit_head,
    lean,
    score_fused,
    score_head,
    set_scaling,
)
from pipelines.training.id_tables import IdTable, opened
from pipelines.training.lists import Sources, joined, ranking_lists
from pipelines.training.measures import ndcg_at
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Part, TrainingSplit, split_after, split_events
from pipelines.training.verdict import verdict

METRICS_FILE = "metrics.json"
LEAN = "lean"
"""The note of a model that says how far it leans to retrieval."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The ranker served now: the one to beat. With `since_ms` training goes on from it, on later events only."""

    folder: Path
    since_ms: int | None = None

    def model(self, embeddings: Floats) -> CompressedModel | None:
        """Return it where it is a compressed ranker that reads these vectors, else None: it cannot be compared."""
        try:
            model = CompressedModel.read(self.folder)
        except RankerError:
            return None
        return model if model.shape.text_dim == embeddings.shape[1] else None


@dataclass(frozen=True, slots=True)
class _Items:
    """What is known of items when the examples begin."""

    catalog: ItemCatalog
    embeddings: Floats
    statistics: Statistics

    @property
    def known(self) -> npt.NDArray[np.uint64]:
        """The items that have an id vector, where any have: all, in the order of their slots."""
        return np.sort(self.catalog.hashes)

    def inputs(self, model: CompressedModel) -> ItemInputs:
        return ItemInputs(
            self.embeddings,
            label_slots(self.catalog, model.labels),
            number_inputs(self.catalog, self.statistics, model.numbers),
            id_slots(self.catalog, model.known_ids),
            model.ids,
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
    incumbent: Incumbent | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train on `log` (sorted by time), write the ranker and `metrics.json` into `folder`, return the metrics.

    A release may name the ranker when `metrics["switch_on"]`: it is not below retrieval order on later
    events, and `beyond_chance` says whether the paired interval excludes a tie. Small or poor
    data raises nothing: `switch_on` is false, `reason` says why, and with too little of it there is no ranker.
    `retrieval`, `behaviour`, `half_life_days` (of recent popularity) and `layout` (of `embeddings`) must be those the
    release serves with: the ranker learns on their lists. A ranker below `incumbent` on later events is not switched
    on either. Deterministic for a seed and a number of torch threads; killed and called again with the same arguments
    and `checkpoint` it ends with the same bytes. Raises TrainingError where it cannot go on.
    """
    sources = Sources(retrieval or RetrievalSettings(), behaviour or BehaviourSettings(), half_life_days, layout)
    metrics = _train(
        log,
        catalog,
        embeddings,
        folder,
        settings or TrainingSettings(),
        sources,
        _Run(seed, incumbent, checkpoint, progress),
    )
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=1, sort_keys=True))
    return metrics


@dataclass(frozen=True, slots=True)
class _Run:
    """What one call goes by beside data and settings."""

    seed: int
    incumbent: Incumbent | None
    checkpoint: Checkpoint | None
    progress: Progress | None
    table: IdTable | None = None
    """Where id vectors are learned."""

    @property
    def since_ms(self) -> int | None:
        return None if self.incumbent is None else self.incumbent.since_ms


def _train(
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: Floats,
    folder: Path,
    settings: TrainingSettings,
    sources: Sources,
    run: _Run,
) -> dict[str, Any]:
    started = time.monotonic()
    served = None if run.incumbent is None else run.incumbent.model(embeddings)
    if run.since_ms is None:
        split = split_events(log, settings, seed=run.seed)
    else:
        if served is None:
            read = f"no compressed ranker of these features and of vectors with {embeddings.shape[1]} dimensions"
            raise TrainingError(f"the ranker served now is {read}: train without going on (leave out --incremental)")
        split = split_after(log, run.since_ms, settings, seed=run.seed)
    facts = _facts(log, split, settings, run)
    few = _too_few(len(split.of(Part.train)), len(split.of(Part.validate)), settings)
    if few is not None:
        return {**facts, "switch_on": False, "reason": few}
    statistics = fit_statistics(split.fit, catalog, half_life_days=sources.half_life_days)
    train, validate = _kept_lists(split, catalog, embeddings, settings, sources, run)
    facts |= {"train_lists": len(train), "examples_s": round(time.monotonic() - started, 1)}
    judge, decide = validate.take(validate.user % 2 == 0), validate.take(validate.user % 2 == 1)
    few = _too_few(len(train), min(int((part.target >= 0).sum()) for part in (judge, decide)), settings)
    if few is not None:
        return {**facts, "switch_on": False, "reason": few}
    items = _Items(catalog, embeddings, statistics)
    going_on = run.since_ms is not None
    # The incumbent's scores first: going on changes its parameters in place.
    theirs = None if served is None else score_fused(served.parameters, served.shape, items.inputs(served), decide)
    start = served if going_on and served is not None else _untrained(items, settings, run)
    with opened(len(items.known) if start.shape.ids else 0, start.shape.dim, settings.id_shards) as table:
        run = replace(run, table=table)
        model, head = (
            _go_on(start, train, judge, items, settings, run) if going_on else _fit(train, judge, items, settings, run)
        )
        fused = score_fused(model.parameters, model.shape, items.inputs(model), decide)
        decided = verdict(fused, decide, incumbent=theirs, rounds=settings.bootstrap_rounds, seed=run.seed)
        metrics = {**facts, **decided, "head_ndcg10": ndcg_at(score_head(head, decide), decide.target)}
        metrics |= {"calibration_error": calibration_error(model, fused, decide)}
        metrics["seconds"] = round(time.monotonic() - started, 1)
        model.save(folder)
    return metrics


def _kept_lists(
    split: TrainingSplit,
    catalog: ItemCatalog,
    embeddings: Floats,
    settings: TrainingSettings,
    sources: Sources,
    run: _Run,
) -> tuple[RankingLists, RankingLists]:
    """Build the lists, or take those that an interrupted training built."""
    kept = None if run.checkpoint is None else run.checkpoint.arrays("lists")
    if kept is not None:
        return RankingLists.of(kept, "train"), RankingLists.of(kept, "validate")
    train, validate = ranking_lists(split, catalog, embeddings, settings, sources, progress=run.progress)
    if run.checkpoint is not None:
        run.checkpoint.keep_arrays("lists", {**train.columns("train"), **validate.columns("validate")})
    return train, validate


def _fit(
    train: RankingLists, judge: RankingLists, items: _Items, settings: TrainingSettings, run: _Run
) -> tuple[CompressedModel, Parameters]:
    """Return the trained model and the parameters of the head as they were when it was trained alone.

    `judge` says how many epochs pay. Then it teaches too: its events are the newest but those that decide.
    """
    head_epochs, epochs, model, head = _fitted(train, judge, items, settings, run)
    if settings.refit:
        both = joined([train, judge.take(judge.target >= 0)])
        as_long = settings.model_copy(update={"epochs": epochs})
        _, _, model, head = _fitted(both, None, items, as_long, run, head_epochs=head_epochs)
    lean(head, settings.lean)
    return _finished(model, judge, items, settings), head


def _fitted(
    train: RankingLists,
    judge: RankingLists | None,
    items: _Items,
    settings: TrainingSettings,
    run: _Run,
    *,
    head_epochs: int = HEAD_EPOCHS,
) -> tuple[int, int, CompressedModel, Parameters]:
    """Return the epochs that head and attention took, the model without calibration, and its head trained alone."""
    model = _untrained(items, settings, run)
    p = model.parameters
    set_scaling(p, train)
    of_head = fit_head(p, train, judge, seed=run.seed, epochs=head_epochs, checkpoint=run.checkpoint)
    head = _head(p)
    return of_head, _attend(model, train, judge, items, settings, run), model, head


def _go_on(
    served: CompressedModel,
    train: RankingLists,
    judge: RankingLists,
    items: _Items,
    settings: TrainingSettings,
    run: _Run,
) -> tuple[CompressedModel, Parameters]:
    """Return the served model after a few gentle passes over new lists, and the parameters of its head before.

    Where it has id vectors, the items of today have one: those it knew theirs, the others a new one.
    """
    if run.table is not None and served.ids is not None:
        run.table.take_over(served.ids, slots_of(items.known, served.known_ids))
        shape = replace(served.shape, ids=len(items.known))
        served = replace(served, known_ids=items.known, shape=shape, ids=run.table)
    p = served.parameters
    head = _head(p)
    lean(p, -float(served.notes.get(LEAN, 0.0)))  # or it would learn to take it back
    gentle = settings.model_copy(
        update={"epochs": settings.incremental_epochs, "learning_rate": settings.incremental_learning_rate}
    )
    _attend(served, train, judge, items, gentle, run)
    return _finished(served, judge, items, settings), head


def _attend(
    model: CompressedModel,
    train: RankingLists,
    judge: RankingLists | None,
    items: _Items,
    settings: TrainingSettings,
    run: _Run,
) -> int:
    """Train attention and head of `model` together, in place; return after how many epochs."""
    parts = (model.parameters, model.shape, items.inputs(model), train, judge, settings)
    kept = run.checkpoint
    return fit_attention(*parts, seed=run.seed, progress=run.progress, checkpoint=kept, table=run.table)


def _finished(
    model: CompressedModel, judge: RankingLists, items: _Items, settings: TrainingSettings
) -> CompressedModel:
    """Return the model leaning to retrieval, in place, and calibrated."""
    lean(model.parameters, settings.lean)
    scores = score_fused(model.parameters, model.shape, items.inputs(model), judge)
    calibration, of_new = calibrations(scores, judge)
    return replace(model, calibration=calibration, calibration_new=of_new, notes={LEAN: settings.lean})


def _head(p: Parameters) -> Parameters:
    return {n: t.clone() for n, t in p.items() if n.startswith("head.")}


def _untrained(items: _Items, settings: TrainingSettings, run: _Run) -> CompressedModel:
    labels, numbers = label_vocabulary(items.catalog), items.catalog.number_names[:MAX_NUMBERS]
    known = items.known if settings.id_vectors else np.empty(0, np.uint64)
    shape = NetworkShape(
        text_dim=items.embeddings.shape[1],
        labels=len(labels),
        numbers=POPULARITY_COLUMNS + len(numbers),
        features=len(FEATURE_NAMES),
        ids=len(known),
    )
    if run.table is not None:
        run.table.clear()
    return CompressedModel(shape, initialise(shape, seed=run.seed), labels, numbers, known, ids=run.table)


def _facts(log: EventLog, split: TrainingSplit, settings: TrainingSettings, run: _Run) -> dict[str, Any]:
    times = log.timestamps_ms
    return {
        "events": len(log),
        "fit_events": len(split.fit),
        "examples": len(split.examples),
        "data_window_ms": [int(times.min()), int(times.max())] if len(times) else None,
        "settings": settings.model_dump(),
        "seed": run.seed,
        "since_ms": run.since_ms,
    }


def _too_few(train: int, validation: int, settings: TrainingSettings) -> str | None:
    if min(train, validation) >= settings.min_examples:
        return None
    return (
        f"{train} training and {validation} validation lists hold the item that was taken; "
        f"min_examples is {settings.min_examples}"
    )
