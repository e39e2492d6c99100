"""Everybody's event sequences, indexed by item, to find people who recently took what this user recently took.

After session-based nearest neighbours (Garg et al., "Sequence and Time Aware Neighborhood", 2019): people who
share several of the last items count far more than people who share one, and of their events those close to the
shared item count most. Bounded work per query whatever the size of the log. Called by `behaviour.fit_behaviour`
and by the neighbours source.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions
from models.opinion import Rows, Scores

_COLUMNS = ("users", "rows", "positions", "offsets")


@dataclass(frozen=True, slots=True)
class Sequences:
    """Events sorted by user, then time, and where each item occurs in them.

    `users` int32 codes and `rows` int32 catalog rows, one per event; `positions[offsets[r]:offsets[r+1]]` are the
    event positions of item `r`, oldest first (int32, int64[items+1]).
    """

    users: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def neighbours(
        self,
        rows: Rows,
        weights: Scores,
        *,
        power: float = 3.0,
        window: int = 10,
        step: float = 0.8,
        backward: float = 0.75,
        per_item: int = 1000,
        matches: int = 1000,
    ) -> tuple[Rows, Scores]:
        """Return items that like-minded people took close to these `rows`, with contributions (an item may repeat).

        A person's likeness is the sum of the `weights` of the rows they share, to the `power`. Their events up to
        `window` steps from a shared item count `step`^distance, those before it `backward` times that. Only the
        last `per_item` occurrences of an item and the `matches` strongest of all are read.
        """
        at, value = self._matches(rows, weights, power=power, per_item=per_item, matches=matches)
        if not len(at):
            return np.empty(0, np.int32), np.empty(0, np.float32)
        distance = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
        kernel = step ** (np.abs(distance) - 1.0) * np.where(distance < 0, backward, 1.0)
        near = at[:, None] + distance
        inside = (near >= 0) & (near < len(self.rows))
        near = np.where(inside, near, 0)
        inside &= self.users[near] == self.users[at][:, None]
        return self.rows[near[inside]], (value[:, None] * kernel)[inside].astype(np.float32)

    def _matches(
        self, rows: Rows, weights: Scores, *, power: float, per_item: int, matches: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the strongest occurrences of `rows` in people's sequences, with their strength (at most 1)."""
        ends = self.offsets[rows.astype(np.int64) + 1]
        starts = np.maximum(self.offsets[rows], ends - per_item)
        found = [self.positions[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
        at = np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)
        if not len(at):
            return at, np.empty(0)
        weight = np.repeat(weights, ends - starts).astype(np.float64) / float(weights.sum())
        _, person = np.unique(self.users[at], return_inverse=True)
        likeness = np.bincount(person, weights=weight)
        value = weight * likeness[person] ** (power - 1)
        if len(at) > matches:
            strongest = np.sort(np.argpartition(-value, matches)[:matches])
            at, value = at[strongest], value[strongest]
        return at, value

    def save(self, folder: Path) -> None:
        """Write one npy file per column into `folder`."""
        for name in _COLUMNS:
            np.save(folder / f"sequence_{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Sequences:
        """Map what `save` wrote."""
        return cls(*(np.load(folder / f"sequence_{n}.npy", mmap_mode="r", allow_pickle=False) for n in _COLUMNS))


def index_sequences(interactions: Interactions) -> Sequences:
    """Index the sequences of a log; the order within one item is by time."""
    positions = np.lexsort((interactions.timestamps_ms, interactions.rows)).astype(np.int32)
    counts = np.bincount(interactions.rows, minlength=interactions.n_items)
    offsets = np.zeros(interactions.n_items + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return Sequences(interactions.users, interactions.rows, positions, offsets)
