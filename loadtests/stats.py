"""Estimates with 95 % intervals from raw samples: quantiles by order statistics, means and ratios by bootstrap.

Everything is a deterministic function of the samples, so that a figure can be recomputed to the last bit. Knows
nothing of requests or files. Called by reports and by the benchmarks' measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 4_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, the number of samples behind it, and its 95 % interval; None where the samples give no bound."""

    value: float | None
    n: int
    ci95: tuple[float | None, float | None]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; what is not finite becomes null."""
        return {"value": finite(self.value), "n": self.n, "ci95": [finite(bound) for bound in self.ci95]}


def finite(value: float | None) -> float | None:
    """Return the value, or None when it is infinite or not a number."""
    return float(value) if value is not None and math.isfinite(value) else None


def quantile(values: npt.ArrayLike, q: float) -> Estimate:
    """Return the nearest-rank quantile (always one of the samples) and its order-statistics interval.

    The interval holds for any distribution of independent samples: the ranks come from Binomial(n, q). A bound for
    which there are too few samples is None; for p99 an upper bound needs about 370. Infinite samples sort last.
    """
    if not 0 < q < 1:
        raise ValueError(f"q must lie between 0 and 1, not {q}")
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    if not n:
        return Estimate(None, 0, (None, None))
    low, high = _binomial_quantile(n, q, 0.025), _binomial_quantile(n, q, 0.975) + 1
    return Estimate(
        finite(ordered[_rank(n, q) - 1]),
        n,
        (finite(ordered[low - 1]) if low >= 1 else None, finite(ordered[high - 1]) if high <= n else None),
    )


def _rank(n: int, q: float) -> int:
    return max(1, math.ceil(n * q - 1e-9))


def _binomial_quantile(n: int, q: float, p: float) -> int:
    """Smallest k with P(Binomial(n, q) <= k) >= p, by bisection."""
    from scipy.special import bdtr

    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtr(middle, n, q) >= p else (middle + 1, high)
    return low


def mean(values: npt.ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean with a bootstrap interval over the values."""
    data = np.asarray(values, dtype=np.float64)
    return _bootstrap(data, lambda rows: rows.mean(axis=1), seed)


def geometric_mean(ratios: npt.ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the geometric mean of positive ratios with a bootstrap interval over them (one ratio per paired round)."""
    data = np.asarray(ratios, dtype=np.float64)
    if len(data) and not (data > 0).all():
        raise ValueError("ratios must be above 0")
    return _bootstrap(np.log(data), lambda rows: rows.mean(axis=1), seed, after=np.exp)


def _bootstrap(
    data: Floats,
    statistic: Callable[[Floats], Floats],
    seed: int,
    *,
    after: Callable[[Floats], Floats] = lambda values: values,
) -> Estimate:
    """Percentile bootstrap, widened for small n (Hesterberg 2015, "expanded percentile interval")."""
    n = len(data)
    if not n:
        return Estimate(None, 0, (None, None))
    value = finite(after(statistic(data[None, :]))[0])
    if n < 3 or not np.isfinite(data).all():
        return Estimate(value, n, (None, None))
    from scipy.special import ndtr, stdtrit

    tail = float(ndtr(math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.025)))
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // n)  # bounded memory
    parts = [
        np.asarray(statistic(data[rng.integers(0, n, size=(min(block, RESAMPLES - done), n))]), dtype=np.float64)
        for done in range(0, RESAMPLES, block)
    ]
    bounds = np.quantile(np.concatenate(parts), [tail, 1 - tail])
    low, high = after(np.asarray(bounds, dtype=np.float64))
    return Estimate(value, n, (finite(low), finite(high)))


def paired_ratios(first: Sequence[float], second: Sequence[float]) -> Floats:
    """Return first/second round by round. Raises ValueError when the rounds do not pair or are not above 0."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or not len(a):
        raise ValueError(f"{len(a)} rounds of one arm and {len(b)} of the other do not pair")
    if not ((a > 0).all() and (b > 0).all()):
        raise ValueError("a ratio needs values above 0")
    return np.asarray(a / b, dtype=np.float64)
