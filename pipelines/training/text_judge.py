"""Decides whether a trained text ranker may be served: one half of later users fits the fusion, the other decides.

Beside the fusion the same weights are fitted without the text logit: what they reach was not brought by reading pairs
of texts. Called by the text training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.rankers.calibration import expected_calibration_error
from models.rankers.compressed import CONFIG_FILE, RankerError
from models.rankers.fusion import FusionFeatures
from models.rankers.port import CrossEncoder
from pipelines.training.examples import Progress, RankingLists
from pipelines.training.measures import gains, paired_bootstrap
from pipelines.training.settings import TextTrainingSettings, TrainingSettings
from pipelines.training.text_cases import TextCase, lists_of
from pipelines.training.text_fuse import fit_fusion, spread
from pipelines.training.text_world import TextWorld
from pipelines.training.verdict import verdict

Floats = npt.NDArray[np.float32]


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


def judge_text(
    judge: Sequence[TextCase],
    decide: Sequence[TextCase],
    world: TextWorld,
    folder: Path,
    settings: TextTrainingSettings,
    training: TrainingSettings,
    seed: int,
    incumbent: Path | None,
    progress: Progress | None,
) -> dict[str, Any]:
    """Fit the fusion on one half, write `ranker.json`, and compare on the other; return the metrics of `train`."""

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
    without = fit_fusion(np.zeros_like(scores), first, stands)
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
    own = gains(_hidden(alone, second), second.target)

    def beyond(ours: npt.NDArray[np.float64], theirs: Floats) -> dict[str, float]:
        base = gains(theirs, second.target)
        return asdict(paired_bootstrap(ours, base, second.user, rounds=training.bootstrap_rounds, seed=seed))

    error = None
    if fusion.calibration is not None:
        logits, taken = spread(fused, second, stands)
        error = expected_calibration_error(fusion.calibration.apply(logits), taken)
    return {
        **metrics,
        "text_ndcg10": float(own.mean()),
        "ms_per_100_candidates": round(per_100_ms, 1),
        "text_vs_retrieval": beyond(own, second.merged),
        "without_text": without.to_json(),
        "fused_vs_without_text": beyond(
            gains(fused, second.target), _hidden(without.logits(np.zeros_like(alone), second.features), second)
        ),
        "calibration_error": error,
    }


def _served(folder: Path, world: TextWorld) -> CrossEncoder | None:
    """Return the ranker served now, or None where it reads other vectors or features: it cannot be compared."""
    try:
        return world.ranker(folder)
    except RankerError:
        return None


def _hidden(scores: Floats, lists: RankingLists) -> Floats:
    """Return the scores with -inf at padding."""
    return np.where(lists.rows >= 0, scores, -np.inf).astype(np.float32)
