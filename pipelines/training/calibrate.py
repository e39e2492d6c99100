"""Makes a compressed ranker's logits probabilities, question by question, and says how far off they are.

What is new to a user is taken less often than what comes again, so one scale for both would say too much of it. Called
by `train_ranker`. Knows nothing of how logits come about.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.rankers.calibration import PlattScaling, expected_calibration_error, fit_platt
from models.rankers.compressed import CompressedModel
from pipelines.training.examples import ANY, NEW, RankingLists

Floats = npt.NDArray[np.float32]


def calibrations(logits: Floats, lists: RankingLists) -> tuple[PlattScaling | None, PlattScaling | None]:
    """Return the calibration of `logits` float32[L, N], and one for what is new to the user where both are asked.

    None where the outcome cannot be learned.
    """
    of = lists.questions()
    if len(of) < 2:
        return _fitted(logits, lists, np.ones(len(lists), np.bool_)), None
    return _fitted(logits, lists, of[ANY]), _fitted(logits, lists, of[NEW])


def calibration_error(model: CompressedModel, logits: Floats, lists: RankingLists) -> float | None:
    """Return by how much stated probabilities are off, each list by the calibration of its question."""
    if model.calibration is None:
        return None
    stated = model.calibration.apply(logits)
    if model.calibration_new is not None:
        stated[lists.new] = model.calibration_new.apply(logits[lists.new])
    real = lists.rows >= 0
    return expected_calibration_error(stated[real], _taken(lists)[real])


def _fitted(logits: Floats, lists: RankingLists, asked: npt.NDArray[np.bool_]) -> PlattScaling | None:
    real = (lists.rows >= 0) & asked[:, None]
    return fit_platt(logits[real], _taken(lists)[real])


def _taken(lists: RankingLists) -> npt.NDArray[np.bool_]:
    taken: npt.NDArray[np.bool_] = np.arange(lists.rows.shape[1])[None, :] == lists.target[:, None]
    return taken
