"""Item statistics: how often each item was taken, how often of late, and by how many users.

A `Statistics` is an immutable snapshot that retrievers map; this fit makes one from an event log. Called by
`pipelines` (offline) and read by the trending and popular sources and by rankers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions, interactions_of
from models.catalog import ItemCatalog
from models.events import EventLog

_DAY_MS = 86_400_000
_COLUMNS = ("popularity", "recent", "users", "first_ms", "as_of_ms")


@dataclass(frozen=True, slots=True)
class Statistics:
    """One value per item.

    `popularity` float32 (positive events), `recent` float32 (the same, decayed), `users` int32 (distinct), `first_ms`
    int64 (first positive event, or the end of the log where there was none).
    `as_of_ms` int64[1] is the time of the newest event counted, 0 for an empty log.
    """

    popularity: npt.NDArray[np.float32]
    recent: npt.NDArray[np.float32]
    users: npt.NDArray[np.int32]
    first_ms: npt.NDArray[np.int64]
    as_of_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.popularity)

    def extended(self, first_ms: npt.NDArray[np.int64]) -> Statistics:
        """Return the same with more items behind these, which nobody took yet; `first_ms` is when each appeared."""
        none = np.zeros(len(first_ms), np.float32)
        return Statistics(
            np.concatenate([self.popularity, none]),
            np.concatenate([self.recent, none]),
            np.concatenate([self.users, np.zeros(len(first_ms), np.int32)]),
            np.concatenate([self.first_ms, first_ms]),
            self.as_of_ms,
        )

    def appeared(self, at_ms: Mapping[int, int]) -> Statistics:
        """Return the same with the time at which items appeared, by row; only of those that nobody took yet."""
        first = np.array(self.first_ms)
        for row, at in at_ms.items():
            if self.users[row] == 0:
                first[row] = at
        return replace(self, first_ms=first)

    def save(self, folder: Path) -> None:
        """Write one npy file per column into `folder`."""
        for name in _COLUMNS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Map what `save` wrote."""
        return cls(*(np.load(folder / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in _COLUMNS))


def fit_statistics(log: EventLog, catalog: ItemCatalog, *, half_life_days: float = 14.0) -> Statistics:
    """Count positive events per item; `recent` halves with every `half_life_days` of age at the log's end."""
    return statistics_of(interactions_of(log, catalog), half_life_days=half_life_days)


def statistics_of(interactions: Interactions, *, half_life_days: float = 14.0) -> Statistics:
    """The same from columns that are already mapped to rows."""
    items, rows, times = interactions.n_items, interactions.rows, interactions.timestamps_ms
    end = int(times.max()) if len(times) else 0
    decayed = np.exp2(-(end - times) / (half_life_days * _DAY_MS))
    pairs = np.unique(interactions.users.astype(np.int64) * max(1, items) + rows)
    first = np.full(items, end, np.int64)
    np.minimum.at(first, rows, times)
    return Statistics(
        popularity=np.bincount(rows, minlength=items).astype(np.float32),
        recent=np.bincount(rows, weights=decayed, minlength=items).astype(np.float32),
        users=np.bincount(pairs % max(1, items), minlength=items).astype(np.int32),
        first_ms=first,
        as_of_ms=np.array([end], np.int64),
    )
