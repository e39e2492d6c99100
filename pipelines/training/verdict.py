"""Whether a trained ranker may be served: compared on later events with retrieval order and with the one served now.

The lists it reads were used for nothing else: not for training, not for stopping, not for calibration. Called by the
trainings of both back ends. Knows nothing of models: it compares scores.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.training.examples import ANY, NEW, RankingLists
from pipelines.training.measures import PairedDifference, gains, paired_bootstrap

Floats = npt.NDArray[np.float32]
Gains = npt.NDArray[np.float64]
_WHOSE = {"retrieval": "retrieval order", "incumbent": "the one served now"}
_ASKED = {NEW: "that ask for what the user does not have", ANY: "that ask for whatever is taken next"}


def verdict(
    fused: Floats, decide: RankingLists, *, incumbent: Floats | None = None, rounds: int, seed: int
) -> dict[str, Any]:
    """Return the figures of `fused` float32[L, N] on the lists `decide`, with `switch_on` and the `reason` against it.

    A ranker loses where its mean NDCG@10 is below that of retrieval order or of `incumbent`, the scores of the
    ranker served now; a tie is no loss. On small data an honest gain is often within the noise, so the guard goes by
    the mean, and the paired interval (95 % over users) stands beside it. Where two questions are asked the mean is
    over both, and a gain in one does not excuse a loss in the other that is beyond chance.
    """
    base, together = gains(decide.merged, decide.target), gains(fused, decide.target)
    against = {"retrieval": base}
    if incumbent is not None:
        against["incumbent"] = gains(incumbent, decide.target)
    found: dict[str, Any] = {
        "fused_ndcg10": float(together.mean()),
        "list_recall": float((decide.target >= 0).mean()),
        "validation_lists": len(decide),
    }
    lost = ""
    for name, theirs in against.items():
        gap = _compared(together, theirs, decide, np.ones(len(decide), np.bool_), rounds, seed)
        found |= {f"{name}_ndcg10": float(theirs.mean()), f"fused_vs_{name}": _bounds(gap)}
        if gap.mean < 0:
            lost = lost or f"the ranker is below {_WHOSE[name]} on later events"
        questions = decide.questions()
        for question, asked in questions.items() if len(questions) > 1 else ():
            part = _compared(together, theirs, decide, asked, rounds, seed)
            found[f"fused_vs_{name}_{question}"] = _bounds(part)
            if part.upper < 0:
                lost = lost or f"the ranker is below {_WHOSE[name]} on later events {_ASKED[question]}"
    return found | {"beyond_chance": found["fused_vs_retrieval"]["lower"] > 0, "switch_on": not lost, "reason": lost}


def _compared(
    ours: Gains, theirs: Gains, lists: RankingLists, asked: npt.NDArray[np.bool_], rounds: int, seed: int
) -> PairedDifference:
    return paired_bootstrap(ours[asked], theirs[asked], lists.user[asked], rounds=rounds, seed=seed)


def _bounds(gap: PairedDifference) -> dict[str, float]:
    return {"mean": gap.mean, "lower": gap.lower, "upper": gap.upper}
