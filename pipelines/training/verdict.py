"""Whether a trained ranker may be served: compared on later events with retrieval order and with the one served now.

The lists it reads were used for nothing else: not for training, not for stopping, not for calibration. Called by the
trainings of both back ends. Knows nothing of models: it compares scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.training.examples import RankingLists
from pipelines.training.measures import PairedDifference, gains, paired_bootstrap

Floats = npt.NDArray[np.float32]


def verdict(
    fused: Floats, decide: RankingLists, *, incumbent: Floats | None = None, rounds: int, seed: int
) -> dict[str, Any]:
    """Return the figures of `fused` float32[L, N] on the lists `decide`, with `switch_on` and the `reason` against it.

    A ranker loses where its mean NDCG@10 is below that of retrieval order or of `incumbent`, the scores of the
    ranker served now; a tie is no loss. On small data an honest gain is often within the noise, so the guard goes by
    the mean, and the paired interval (95 % over users) stands beside it.
    """
    base, together = gains(decide.merged, decide.target), gains(fused, decide.target)
    gap = paired_bootstrap(together, base, decide.user, rounds=rounds, seed=seed)
    found: dict[str, Any] = {
        "retrieval_ndcg10": float(base.mean()),
        "fused_ndcg10": float(together.mean()),
        "fused_vs_retrieval": _bounds(gap),
        "list_recall": float((decide.target >= 0).mean()),
        "validation_lists": len(decide),
        "beyond_chance": gap.lower > 0,
    }
    lost = "the ranker is below retrieval order on later events" if gap.mean < 0 else ""
    if incumbent is not None:
        served = gains(incumbent, decide.target)
        against = paired_bootstrap(together, served, decide.user, rounds=rounds, seed=seed)
        found |= {"incumbent_ndcg10": float(served.mean()), "fused_vs_incumbent": _bounds(against)}
        if not lost and against.mean < 0:
            lost = "the ranker is below the one served now on later events"
    return found | {"switch_on": not lost, "reason": lost}


def _bounds(gap: PairedDifference) -> dict[str, float]:
    return {"mean": gap.mean, "lower": gap.lower, "upper": gap.upper}
