"""Replays an event log user by user: what was known before an event, and which event came next.

Training examples and evaluation cases both come from here, so that a feature means the same in both and online.
Knows nothing of models or splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.events import POSITIVE_TYPES, EventLog, EventType
from models.features import RECENT_EVENTS, UserFeatures
from models.ids import hash64_array

_POSITIVE = np.zeros(256, dtype=bool)
_POSITIVE[[int(t) for t in POSITIVE_TYPES]] = True


@dataclass(frozen=True, slots=True)
class UserHistory:
    """All events of one user that enter the ring (no impressions, no searches), oldest first."""

    user_id: str
    item_ids: npt.NDArray[np.object_]
    hashes: npt.NDArray[np.uint64]
    types: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]
    timestamps_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.item_ids)

    def before(self, position: int, *, limit: int = RECENT_EVENTS) -> UserFeatures:
        """Return what the online store would have held just before event `position`."""
        ring = slice(max(0, position - limit), position)
        return UserFeatures(
            item_ids=tuple(self.item_ids[ring]),
            types=self.types[ring],
            values=self.values[ring],
            timestamps_ms=self.timestamps_ms[ring],
            seen=np.unique(self.hashes[:position]),
            known=position > 0,
        )

    def positive_positions(self) -> npt.NDArray[np.intp]:
        """Return the positions of events that say "this user took this item"."""
        return np.flatnonzero(_POSITIVE[self.types])


def order_of(log: EventLog, *, tie_seed: int | None = None) -> npt.NDArray[Any]:
    """Return the positions of `log` sorted by user, then time.

    Equal times of one user keep the order of the log, or are shuffled when a seed is given: logs whose clock
    ticks in seconds say nothing about the order within one.
    """
    _, users = np.unique(log.user_ids.astype(str), return_inverse=True)
    keys = [log.timestamps_ms, users]
    if tie_seed is not None:
        keys.insert(0, np.random.default_rng(tie_seed).permutation(len(log)))
    return np.asarray(np.lexsort(keys))


def ring_events(log: EventLog) -> EventLog:
    """Return the events that enter a user's history: all but impressions and searches."""
    return log.take(np.flatnonzero((log.types != EventType.impression) & (log.types != EventType.search)))


def histories(log: EventLog, *, tie_seed: int | None = None) -> Iterator[UserHistory]:
    """Yield every user's history, users in the order of their ids."""
    kept = ring_events(log)
    kept = kept.take(order_of(kept, tie_seed=tie_seed))
    distinct, codes = np.unique(kept.item_ids.astype(str), return_inverse=True)
    hashes = hash64_array(distinct.tolist())[codes] if len(kept) else np.empty(0, np.uint64)
    starts = np.flatnonzero(np.r_[True, kept.user_ids[1:] != kept.user_ids[:-1]]) if len(kept) else np.empty(0, int)
    for start, end in zip(starts, np.r_[starts[1:], len(kept)].astype(int), strict=True):
        part = slice(int(start), int(end))
        yield UserHistory(
            str(kept.user_ids[start]),
            kept.item_ids[part],
            hashes[part],
            kept.types[part],
            kept.values[part],
            kept.timestamps_ms[part],
        )


@dataclass(frozen=True, slots=True)
class NextItem:
    """One example: `user` as known at `now_ms`, who then took `item_id`."""

    user_id: str
    user: UserFeatures
    now_ms: int
    item_id: str


def next_items(
    log: EventLog, *, last: int | None = None, minimum_history: int = 1, tie_seed: int | None = None
) -> Iterator[NextItem]:
    """Yield, user by user, the positive events with what was known before each.

    `last` keeps the last so many positive events of each user; `minimum_history` is how many events must come
    before. An item the user had seen already is not an example: it could not have been recommended.
    """
    for history in histories(log, tie_seed=tie_seed):
        positions = history.positive_positions()
        for position in positions[-last:] if last is not None else positions:
            user = history.before(int(position))
            if position >= minimum_history and not _has(user.seen, history.hashes[position]):
                now = int(history.timestamps_ms[position])
                yield NextItem(history.user_id, user, now, str(history.item_ids[position]))


def _has(ordered: npt.NDArray[np.uint64], value: np.uint64) -> bool:
    at = int(np.searchsorted(ordered, value))
    return at < len(ordered) and bool(ordered[at] == value)
