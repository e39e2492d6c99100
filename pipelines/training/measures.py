"""How good an order of candidates is, and whether one order beats another beyond chance.

Called by training. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def gains(scores: Floats, target: npt.NDArray[np.int32], *, at: int = 10) -> npt.NDArray[np.float64]:
    """Return each list's NDCG@`at` with one relevant item: 0 where it was missed (`target` -1).

    `scores` float32[L, N], -inf at padding; candidates with the target's score count half a place each.
    """
    if scores.size == 0:
        return np.zeros(len(target))
    own = np.take_along_axis(scores, np.maximum(target, 0)[:, None], axis=1)
    place = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2.0
    return np.where((target >= 0) & (place < at), 1.0 / np.log2(place + 2.0), 0.0)


def ndcg_at(scores: Floats, target: npt.NDArray[np.int32], *, at: int = 10) -> float:
    """Return the mean of `gains`, 0 without lists."""
    return float(gains(scores, target, at=at).mean()) if len(target) else 0.0


def list_loss(scores: Floats, target: npt.NDArray[np.int32]) -> float:
    """Return the mean of -log(softmax share of the target) over the lists that hold it, 0 without any.

    It moves with every candidate, so it tells two models apart with far fewer lists than NDCG does.
    """
    found = target >= 0
    if not found.any():
        return 0.0
    logits = scores[found].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(logits, target[found][:, None], axis=1)[:, 0]
    return float((np.log(np.exp(logits).sum(axis=1)) - own).mean())


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean difference of two methods on the same lists with its 95 % interval over users."""

    mean: float
    lower: float
    upper: float


def paired_bootstrap(
    better: npt.NDArray[np.float64],
    base: npt.NDArray[np.float64],
    user: npt.NDArray[np.int32],
    *,
    rounds: int = 2000,
    seed: int = 0,
) -> PairedDifference:
    """Resample users (all lists of a user together) and return the interval of mean(`better` - `base`)."""
    _, codes = np.unique(user, return_inverse=True)
    total = np.bincount(codes, better - base)
    count = np.bincount(codes).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(rounds)
    for at in range(rounds):
        drawn = rng.integers(0, len(total), len(total))
        means[at] = total[drawn].sum() / count[drawn].sum()
    lower, upper = np.quantile(means, [0.025, 0.975])
    return PairedDifference(float(total.sum() / count.sum()), float(lower), float(upper))
