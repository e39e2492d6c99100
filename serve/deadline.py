"""Deadlines: how long a request may still take, as monotonic time inside one process.

Between processes a deadline travels as remaining milliseconds, so clock skew between nodes cannot hurt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""Returns monotonic seconds."""


class FakeClock:
    """A clock that moves only when told to; shipped for tests."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the current fake time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move time forward."""
        self.now += seconds


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time."""

    at_s: float
    clock: Clock = field(default=time.monotonic, repr=False, compare=False)

    @classmethod
    def after_ms(cls, milliseconds: float, *, clock: Clock = time.monotonic) -> Deadline:
        """Return the deadline `milliseconds` from now."""
        return cls(clock() + milliseconds / 1000.0, clock)

    def remaining_ms(self) -> float:
        """Return what is left, never below 0."""
        return max(0.0, (self.at_s - self.clock()) * 1000.0)

    def capped(self, budget_ms: float) -> Deadline:
        """Return the earlier of this deadline and `budget_ms` from now."""
        return Deadline(min(self.at_s, self.clock() + budget_ms / 1000.0), self.clock)
