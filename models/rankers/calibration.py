"""Calibration: from a ranker's logit to the probability that the candidate is the user's next action.

Platt scaling (Platt 1999): two numbers fitted on late events, monotonic, so it never changes an order. How far off it
is must be asked of events that were used for nothing else.
Knows nothing of rankers. Called by training (fit) and by rankers (apply).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PlattScaling:
    """probability = sigmoid(slope × logit + intercept); `slope` is positive."""

    slope: float
    intercept: float

    def apply(self, logits: Floats) -> Floats:
        """Return probabilities, same shape and order as `logits`."""
        z = np.clip(self.slope * logits.astype(np.float64) + self.intercept, -60.0, 60.0)
        return (1.0 / (1.0 + np.exp(-z))).astype(np.float32)


def fit_platt(logits: Floats, taken: npt.NDArray[np.bool_], *, steps: int = 50) -> PlattScaling | None:
    """Fit on candidates with known outcome by Newton's method; None when the outcome cannot be learned.

    That is: fewer than 20 taken or not taken, or a slope that is not positive (the logit does not rank).
    """
    if min(int(taken.sum()), int((~taken).sum())) < 20:
        return None
    centre, scale = float(logits.mean()), float(logits.std()) or 1.0
    x = np.stack([(logits.astype(np.float64) - centre) / scale, np.ones(len(logits))], axis=1)
    w = np.array([1.0, np.log(taken.mean() / (1 - taken.mean()))])
    for _ in range(steps):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ w, -60, 60)))
        gradient = x.T @ (p - taken) + 1e-3 * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        w -= np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-7:
            break
    slope = float(w[0]) / scale
    if not np.isfinite(w).all() or slope <= 0:
        return None
    return PlattScaling(slope, float(w[1]) - slope * centre)


def expected_calibration_error(probabilities: Floats, taken: npt.NDArray[np.bool_], *, bins: int = 10) -> float:
    """Return the mean gap between stated and observed frequency over `bins` groups of equal size."""
    if len(probabilities) == 0:
        return 0.0
    order = np.argsort(probabilities, kind="stable")
    groups = np.array_split(order, min(bins, len(order)))
    gaps = [abs(float(probabilities[g].mean()) - float(taken[g].mean())) * len(g) for g in groups]
    return float(sum(gaps) / len(order))
