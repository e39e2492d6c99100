"""Search for the highest rate that holds an objective: given rates, or doubling and then halving the gap.

Knows nothing of HTTP: a probe is a function of a rate. Called by the `http` and `client` benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.schedule import LoadError

Probe = Callable[[float], bool]
"""Offer a rate and say whether it held."""


def parse_rates(text: str) -> list[float]:
    """Return the rates of "50,100,200", ascending. Raises LoadError."""
    try:
        rates = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise LoadError(f"rates must be numbers separated by commas, not {text!r}") from error
    if rates[0] <= 0 or len(rates) > 50:
        raise LoadError("rates must be above 0 and at most 50 of them")
    return rates


def sweep(probe: Probe, rates: Sequence[float]) -> float | None:
    """Offer the rates in ascending order until one does not hold; returns the highest that held, or None."""
    best = None
    for rate in sorted(rates):
        if not probe(rate):
            break
        best = rate
    return best


def search(probe: Probe, start: float, *, max_rate: float, bisections: int = 3, max_probes: int = 16) -> float | None:
    """Double (or halve) from `start` until the border lies between two rates, then halve the gap geometrically.

    Returns the highest rate that held, or None when none did. Offers at most `max_probes` rates.
    """
    low: float | None = None
    high: float | None = None
    rate = min(start, max_rate)
    for _ in range(max_probes):
        if probe(rate):
            low = max(rate, low or 0.0)
        else:
            high = min(rate, high or rate)
        if low is not None and (low >= max_rate or (high is not None and bisections == 0)):
            break
        if low is None:
            assert high is not None
            if high < start / 64:
                break
            rate = high / 2
        elif high is None:
            rate = min(low * 2, max_rate)
        else:
            bisections -= 1
            rate = float(f"{(low * high) ** 0.5:.3g}")
    return low
