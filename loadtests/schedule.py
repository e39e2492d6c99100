"""When each request is meant to be sent: arrival times drawn before the run, independent of any answer.

Knows nothing of HTTP or of clocks. Called by the open-loop client and by whoever wants to see a schedule.
"""

from enum import StrEnum

import numpy as np
import numpy.typing as npt

NS = 1_000_000_000
MAX_ARRIVALS = 500_000
MAX_DURATION_S = 3600.0


class LoadError(ValueError):
    """A load test that must not start as asked; the message names the option to change."""


class Arrivals(StrEnum):
    """How arrivals are spaced: `poisson` (independent users) or `constant` (a metronome)."""

    POISSON = "poisson"
    CONSTANT = "constant"


def arrivals_ns(
    rate_rps: float,
    duration_s: float,
    *,
    process: Arrivals = Arrivals.POISSON,
    seed: int = 0,
    max_arrivals: int = MAX_ARRIVALS,
) -> npt.NDArray[np.int64]:
    """Return the offsets of all arrivals from the start of the run, in ns, ascending, all below the duration.

    The same arguments give the same array. Raises LoadError when the schedule would be empty or unbounded.
    """
    if not (0 < rate_rps < 1e6):
        raise LoadError(f"rate must be above 0 and below 1,000,000 requests/s, not {rate_rps}")
    if not (0 < duration_s <= MAX_DURATION_S):
        raise LoadError(f"duration must be above 0 and at most {MAX_DURATION_S:.0f} s, not {duration_s}")
    expected = rate_rps * duration_s
    if expected > max_arrivals:
        raise LoadError(f"{expected:.0f} requests exceed the bound of {max_arrivals}: lower the rate or the duration")
    end = int(duration_s * NS)
    if process is Arrivals.CONSTANT:
        offsets = np.arange(int(expected) + 1, dtype=np.float64) * (NS / rate_rps)
    else:
        rng = np.random.default_rng(seed)
        spare = int(expected + 10 * np.sqrt(expected) + 20)
        offsets = np.cumsum(rng.exponential(NS / rate_rps, size=spare))
    kept = offsets.astype(np.int64)
    kept = kept[kept < end][:max_arrivals]
    if not len(kept):
        raise LoadError(f"no request falls into {duration_s} s at {rate_rps} requests/s: raise the duration")
    return kept
