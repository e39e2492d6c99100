"""Bootstrap intervals over users: one method, or two methods on the same users. Seeded, so runs repeat exactly.

Called by `evaluate`. Knows nothing of metrics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

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
    means = per_user[_drawn(users, rounds, seed)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(per_user.mean()), float(low), float(high))


@lru_cache(maxsize=4)
def _drawn(users: int, rounds: int, seed: int) -> npt.NDArray[np.int32]:
    """Return the users of every round; the same for every method asked about so many."""
    return np.random.default_rng(seed).integers(0, users, (rounds, users)).astype(np.int32)


def paired(ours: Values, theirs: Values, *, rounds: int = ROUNDS, seed: int = 0) -> Interval:
    """Return the mean advantage of `ours` over `theirs` on the same users; a claim needs `low` > 0."""
    if ours.shape != theirs.shape:
        raise ValueError(f"paired intervals need the same users: {ours.shape} against {theirs.shape}")
    return interval(ours - theirs, rounds=rounds, seed=seed)
