"""Bootstrap intervals over users: one method, or two methods on the same users. Seeded, so runs repeat exactly.

Called by `evaluate`. Knows nothing of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
ROUNDS = 2_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(per_user: Values, *, rounds: int = ROUNDS, seed: int = 0) -> Interval:
    """Return the mean over users with its percentile interval from resampling users; NaN without users."""
    users = len(per_user)
    if not users:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.fromiter((per_user[rng.integers(0, users, users)].mean() for _ in range(rounds)), np.float64, rounds)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(per_user.mean()), float(low), float(high))


def paired(ours: Values, theirs: Values, *, rounds: int = ROUNDS, seed: int = 0) -> Interval:
    """Return the mean advantage of `ours` over `theirs` on the same users; a claim needs `low` > 0."""
    if ours.shape != theirs.shape:
        raise ValueError(f"paired intervals need the same users: {ours.shape} against {theirs.shape}")
    return interval(ours - theirs, rounds=rounds, seed=seed)
