"""Tunes the weights of the retrieval sources on validation events, never on test events.

The merged score is linear in the scaled source scores, so each case is retrieved once and the search over weights
is a handful of matrix products. Called by hand before weights are committed as defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.candidates import SCORED_SOURCES, Source
from models.events import EventLog
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from pipelines.evaluation.protocol import leave_last, validation_log

GRID = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
_DEPTH = 400


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best weights found, with NDCG@10 on the validation events before and after."""

    weights: Mapping[Source, float]
    ndcg_before: float
    ndcg: float


def tune(
    log: EventLog,
    build: Callable[[EventLog], RetrievalEngine],
    start: Mapping[Source, float],
    *,
    fixed: Source = Source.neighbours,
    sweeps: int = 2,
    seeds: Sequence[int] = (0, 1),
    history: int | None = None,
) -> Tuned:
    """Search weights by coordinate ascent over `GRID`, with `fixed` kept as the unit.

    The last three events of every user are removed before anything else happens. `history` cuts what is known
    of each user to so many last events, to tune for short histories. `build` fits an engine from a log.
    """
    held = [_collect(validation_log(log, tie_seed=s), build, seed=s, history=history) for s in seeds]
    weights = np.array([start.get(s, 0.0) for s in SCORED_SOURCES], np.float32)
    before = best = _ndcg(held, weights)
    for _ in range(sweeps):
        for at, source in enumerate(SCORED_SOURCES):
            if source in (fixed, Source.repeat, Source.similar):
                continue  # these have nothing to say without repeats and seeds
            for value in GRID:
                tried = weights.copy()
                tried[at] = value
                if (found := _ndcg(held, tried)) > best + 1e-6:
                    best, weights = found, tried
    return Tuned({s: float(w) for s, w in zip(SCORED_SOURCES, weights, strict=True) if w}, before, best)


_Held = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def _collect(log: EventLog, build: Callable[[EventLog], RetrievalEngine], *, seed: int, history: int | None) -> _Held:
    """Return scaled source scores float32[cases, depth, sources] and each target's place in them, -1 if missed."""
    split = leave_last(log, tie_seed=seed)
    engine = build(split.train)
    scores = np.full((len(split.cases), _DEPTH, len(SCORED_SOURCES)), -np.inf, np.float32)
    places = np.full(len(split.cases), -1, np.int64)
    for at, case in enumerate(split.cases):
        user = case.user if history is None else case.user.take(np.arange(len(case.user))[-history:])
        found = engine.retrieve(RetrievalQuery(n=_DEPTH, now_ms=case.now_ms, user=user))
        scores[at, : len(found)] = found.source_scores
        (target,) = engine.catalog.rows(list(case.targets))
        hit = np.flatnonzero(found.rows == target)
        places[at] = hit[0] if len(hit) else -1
    return scores, places


def _ndcg(held: Sequence[_Held], weights: npt.NDArray[np.float32]) -> float:
    used = np.flatnonzero(weights)
    gains = []
    for scores, places in held:
        found = np.flatnonzero(places >= 0)
        total = scores[found][:, :, used] @ weights[used]
        own = total[np.arange(len(found)), places[found]]
        rank = (total > own[:, None]).sum(axis=1)
        gains.append(float(np.where(rank < 10, 1 / np.log2(rank + 2), 0.0).sum()) / len(places))
    return float(np.mean(gains))
