"""User features: what one round trip to the online store returns, and what every stage reads.

The same type is built from an event log (training, evaluation) by `features_from_events`, so that a feature
means one thing online and offline. Knows nothing of stores or requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.declared import Declaration
from models.events import EventType
from models.ids import hash64_array

RECENT_EVENTS = 256
"""How many of a user's last events are kept in the ring; older ones survive only in the seen set."""


def _no_hashes() -> npt.NDArray[np.uint64]:
    return np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class UserFeatures:
    """What is known of one user (or session) at request time.

    The columns have equal length (≤ `RECENT_EVENTS`), oldest first. `seen` holds sorted, distinct 64-bit
    hashes of every item the user took or hid. `known` is False for a user without any stored event.
    `stale` is True when the store could not be read and this is a substitute. `intent` is the vector of the newest
    search, float32[dimension of the encoder then], made at `intent_ms` by the encoder that `intent_tag` names
    (`models.intent.encoder_tag`; empty for what was stored before there were tags); `declared` is what they say of
    themselves. Who only searched or declared is not `known` for that. `summary` says in words what the user is
    interested in, or is "" where nobody wrote that lately.
    """

    item_ids: tuple[str, ...] = ()
    types: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    values: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    timestamps_ms: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    seen: npt.NDArray[np.uint64] = field(default_factory=_no_hashes)
    known: bool = False
    stale: bool = False
    intent: npt.NDArray[np.float32] | None = None
    intent_ms: int = 0
    intent_tag: bytes = b""
    summary: str = ""
    declared: Declaration | None = None

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, index: npt.NDArray[Any]) -> UserFeatures:
        """Return the same user with only the events of `index` (a boolean mask or positions)."""
        positions = np.flatnonzero(index) if index.dtype == bool else index
        return replace(
            self,
            item_ids=tuple(self.item_ids[i] for i in positions),
            types=self.types[positions],
            values=self.values[positions],
            timestamps_ms=self.timestamps_ms[positions],
        )

    def last_event_ms(self) -> int | None:
        """Time of the newest event, or None without history."""
        return int(self.timestamps_ms[-1]) if len(self) else None


ANONYMOUS = UserFeatures()


def features_from_events(
    item_ids: list[str],
    types: npt.NDArray[np.uint8],
    values: npt.NDArray[np.float32],
    timestamps_ms: npt.NDArray[np.int64],
    *,
    limit: int = RECENT_EVENTS,
) -> UserFeatures:
    """Build the features of one user from their events, oldest first, exactly as the online store would.

    Impressions and searches are not part of the ring; every other event enters it and the seen set.
    """
    kept = np.flatnonzero((types != EventType.impression) & (types != EventType.search))
    seen = np.unique(hash64_array(item_ids[i] for i in kept))
    recent = kept[-limit:]
    return UserFeatures(
        item_ids=tuple(item_ids[i] for i in recent),
        types=types[recent],
        values=values[recent],
        timestamps_ms=timestamps_ms[recent],
        seen=seen,
        known=len(kept) > 0,
    )
