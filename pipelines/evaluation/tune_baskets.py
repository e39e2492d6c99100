"""Tunes the weights of the retrieval sources for next baskets, on events before the test events only.

The counterpart of `tune` for the split by time: several stretches before the test events validate together, each from
what lies before it, since demand in one season says little about the next. A mean over stretches follows the season
that most of them lie in; the worst of them, against a yardstick, says what holds when the season turns. Called by hand
before weights are committed to an environment, and by `cluster.evaluate` for its stretches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.candidates import SCORED_SOURCES, Source
from models.events import EventLog
from models.retrieval.engine import RetrievalEngine
from pipelines.evaluation.baselines import Build, Recommend
from pipelines.evaluation.evaluate import query_of
from pipelines.evaluation.metrics import score_list
from pipelines.evaluation.protocol import Case, Split, moment_of, split_by_time
from pipelines.evaluation.tune import GRID, Tuned

_DISCOUNTS = 1 / np.log2(np.arange(2, 12))
_IDEAL = np.cumsum(_DISCOUNTS)
_ROUNDS_UP = 1e-5
STRETCHES = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.9))
"""Shares of the log between which baskets are predicted; the last ends where the test events begin."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One way of asking: scaled source scores, what may be returned and what is right, each over cases × items."""

    scores: npt.NDArray[np.float32]
    allowed: npt.NDArray[np.bool_]
    right: npt.NDArray[np.bool_]
    yardstick: npt.NDArray[np.float64] | None
    """NDCG@10 of each case by the yardstick."""


def split_of(log: EventLog, stretch: tuple[float, float], *, repeats: bool = False, **more: int) -> Split:
    """Return the split that predicts a stretch from what lies before it; later events do not exist."""
    start, end = stretch
    known = log.take(log.timestamps_ms < moment_of(log, end))
    return split_by_time(known, share=start / end, repeats=repeats, **more)


def tune_baskets(
    log: EventLog,
    build: Callable[[EventLog], RetrievalEngine],
    start: Mapping[Source, float],
    *,
    fixed: Source = Source.collaborative,
    stretches: Sequence[tuple[float, float]] = STRETCHES,
    repeats: Sequence[bool] = (False, True),
    sweeps: int = 2,
    grid: Sequence[float] = (*GRID, 1.5, 2.0),
    yardstick: Build | None = None,
) -> Tuned:
    """Search weights by coordinate ascent over `grid`, with `fixed` kept as the unit.

    The figure is the mean NDCG@10 over `stretches` and over the questions: what is new to the user (`repeats` False)
    and anything (True). With a `yardstick` it is the least of their lower bounds (95 %) of the advantage over that one.
    Events after a stretch do not exist while it is asked about; `build` fits an engine to a log.
    """
    columns = []
    for stretch in stretches:
        splits = [split_of(log, stretch, repeats=each) for each in repeats]
        engine = build(splits[0].train)
        theirs = None if yardstick is None else yardstick(splits[0].train)
        columns += [_collect(engine, split.cases, theirs) for split in splits]
    weights = np.array([start.get(s, 0.0) for s in SCORED_SOURCES], np.float32)
    before = best = _figure(columns, weights)
    for _ in range(sweeps):
        for at, source in enumerate(SCORED_SOURCES):
            if source in (fixed, Source.similar):
                continue  # without seeds, `similar` has nothing to say
            for value in grid:
                tried = weights.copy()
                tried[at] = value
                if (found := _figure(columns, tried)) > best + _ROUNDS_UP:
                    best, weights = found, tried
    return Tuned({s: float(w) for s, w in zip(SCORED_SOURCES, weights, strict=True) if w}, before, best)


def _collect(engine: RetrievalEngine, cases: Sequence[Case], yardstick: Recommend | None) -> _Column:
    items = len(engine.catalog)
    scores = np.zeros((len(cases), items, len(SCORED_SOURCES)), np.float32)
    allowed = np.zeros((len(cases), items), bool)
    right = np.zeros((len(cases), items), bool)
    for at, case in enumerate(cases):
        found = engine.retrieve(query_of(case, items))
        scores[at, found.rows] = found.source_scores
        allowed[at, found.rows] = True
        targets = engine.catalog.rows(sorted(case.targets))
        right[at, targets[targets >= 0]] = True
    theirs = None
    if yardstick is not None:
        lists = [list(yardstick(query_of(case, 10), 10)) for case in cases]
        theirs = np.array([score_list(one, case.targets, 10)[1] for one, case in zip(lists, cases, strict=True)])
    return _Column(scores, allowed, right, theirs)


def _figure(columns: Sequence[_Column], weights: npt.NDArray[np.float32]) -> float:
    found = [(_ndcg(column, weights), column.yardstick) for column in columns]
    gains = [ours - theirs for ours, theirs in found if theirs is not None]
    if not gains:
        return float(np.mean([ours.mean() for ours, _ in found]))
    return float(min(gain.mean() - 1.96 * gain.std() / np.sqrt(max(1, len(gain))) for gain in gains))


def _ndcg(column: _Column, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return NDCG@10 of each case."""
    total = np.where(column.allowed, column.scores @ weights, -np.inf)
    best = np.argpartition(-total, min(10, total.shape[1] - 1), axis=1)[:, :10]
    order = np.argsort(-np.take_along_axis(total, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    hits = np.take_along_axis(column.right & column.allowed, best, axis=1)
    ideal = _IDEAL[np.clip(column.right.sum(axis=1), 1, 10) - 1]
    return np.asarray((hits * _DISCOUNTS[: hits.shape[1]]).sum(axis=1) / ideal, np.float64)
