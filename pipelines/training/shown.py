"""What users were shown and did not take: the surest negatives, where applications post impressions.

An impression is proof that an item was seen just before something else was taken. Called by the trainings, which read
the same log for it as for the events. Knows nothing of lists or models.
"""

from __future__ import annotations

import numpy as np

from models.behaviour.replay import UserHistory
from models.events import EventLog, EventType

_LONGEST_MS = 86_400_000
"""Who comes back after a day chooses from what is shown then."""


class Shown:
    """The impressions of a log by user, in time order. Immutable."""

    def __init__(self, log: EventLog) -> None:
        """Events of other types are left out."""
        seen = log.take(log.types == EventType.impression)
        order = np.lexsort((seen.timestamps_ms, seen.user_ids.astype(str)))
        self._items, self._times = seen.item_ids[order], seen.timestamps_ms[order]
        users, starts = np.unique(seen.user_ids[order].astype(str), return_index=True)
        ends = np.r_[starts[1:], len(order)][: len(starts)]
        self._of = {user: slice(int(a), int(b)) for user, a, b in zip(users.tolist(), starts, ends, strict=True)}

    def before(self, history: UserHistory, position: int) -> list[str]:
        """Return what a user saw between an event and the one before it, at most for a day: item ids, oldest first."""
        own = self._of.get(history.user_id)
        if own is None:
            return []
        now = int(history.timestamps_ms[position])
        since = max(now - _LONGEST_MS, int(history.timestamps_ms[position - 1]) if position else 0)
        first, last = np.searchsorted(self._times[own], [since, now], side="right")
        items: list[str] = self._items[own][first:last].tolist()
        return items
