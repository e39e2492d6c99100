"""Fits how a text logit stands beside retrieval and popularity: a few weights, by listwise softmax on later events.

It starts as retrieval order and is held near it, so that few lists cannot make it wild. Knows nothing of texts. Called
by the text training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.rankers.calibration import fit_platt
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.text_fusion import FUSED_WITH, TextFusion
from pipelines.training.examples import RankingLists

Floats = npt.NDArray[np.float32]
_NEAR = 0.01
"""Weight of the squared distance from retrieval order, per weight in units of its feature's deviation."""


def fit_fusion(text: Floats, lists: RankingLists, stands: npt.NDArray[np.int64]) -> TextFusion:
    """Return weights for text logits float32[L, N] beside the features of `lists`, calibrated on the same lists.

    `stands` int64[L] is for how many lists each one stands. Those that miss what was taken teach no order, but count
    for the calibration: an answer may hold nothing that the user takes next. Deterministic.
    """
    import torch

    found = np.flatnonzero(lists.target >= 0)
    columns = [FEATURE_NAMES.index(name) for name in FUSED_WITH]
    real = lists.rows >= 0
    inputs = np.concatenate([text[..., None], lists.features[..., columns]], axis=2)
    deviation = inputs[real].std(axis=0) if real.any() else np.ones(inputs.shape[2])
    scale = np.where(deviation > 1e-6, deviation, 1.0).astype(np.float32)
    start = torch.zeros(len(scale), dtype=torch.float64)
    start[1 + FUSED_WITH.index("merged_z")] = 1.0
    weights = start.clone().requires_grad_()
    x = torch.from_numpy((inputs[found] / scale).astype(np.float64))
    hidden = torch.from_numpy(~real[found])
    target = torch.from_numpy(lists.target[found].astype(np.int64))
    optimiser = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = (x @ weights).masked_fill(hidden, -1e9)
        value = torch.nn.functional.cross_entropy(logits, target) + _NEAR * ((weights - start) ** 2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    if len(found):
        optimiser.step(loss)  # type: ignore[no-untyped-call]
    raw = (weights.detach().numpy() / scale).tolist()
    fusion = TextFusion(raw[0], dict(zip(FUSED_WITH, raw[1:], strict=True)))
    logits, taken = spread(fusion.logits(text, lists.features), lists, stands)
    return TextFusion(fusion.text, fusion.weights, fit_platt(logits, taken))


def spread(scores: Floats, lists: RankingLists, stands: npt.NDArray[np.int64]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Return the scores of all candidates, and which were taken, each list as often as it stands for others."""
    every = np.repeat(np.arange(len(lists)), stands)
    real = lists.rows[every] >= 0
    taken = np.arange(lists.rows.shape[1])[None, :] == lists.target[every][:, None]
    return scores[every][real], taken[real]
