"""Events: the vocabulary applications speak, and the columnar log that training reads.

`Event` is one event on its way into the store; `EventLog` is many of them as columns, ordered by time.
Called by the store, the importers, training and evaluation. Knows nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt


class EventType(IntEnum):
    """What happened. The numbers are stored; append, never renumber."""

    impression = 0
    view = 1
    click = 2
    like = 3
    rating = 4
    add_to_cart = 5
    purchase = 6
    dislike = 7
    hide = 8
    search = 9


POSITIVE_TYPES = frozenset(
    {EventType.view, EventType.click, EventType.like, EventType.rating, EventType.add_to_cart, EventType.purchase}
)
"""Types that say "this user took this item"; they feed history, co-visitation and popularity."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as the store receives it; ids are already validated.

    `owner` is the user id, or `~s:` + the session id where no user is known: both are profile keys.
    `value` is the rating or quantity (1.0 where there is none).
    """

    event_id: str
    owner: str
    type: EventType
    timestamp_ms: int
    item_id: str | None = None
    value: float = 1.0
    decision_id: str | None = None
    intent: bytes | None = None
    """Of a search: its text as a vector (`models.intent`). Goes into the profile; streams and logs never hold it."""


def session_owner(session_id: str) -> str:
    """Return the profile key of an anonymous session."""
    return f"~s:{session_id}"


@dataclass(frozen=True, slots=True)
class EventLog:
    """Events as columns of equal length, sorted by `timestamp_ms` (stable).

    `user_ids` and `item_ids` are object arrays of str; `types` uint8; `values` float32; `timestamps_ms` int64.
    """

    user_ids: npt.NDArray[np.object_]
    item_ids: npt.NDArray[np.object_]
    types: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]
    timestamps_ms: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.timestamps_ms)

    def take(self, index: npt.NDArray[Any]) -> EventLog:
        """Return the rows of `index` (positions or a boolean mask), in that order."""
        return EventLog(
            self.user_ids[index], self.item_ids[index], self.types[index], self.values[index], self.timestamps_ms[index]
        )

    def sorted_by_time(self) -> EventLog:
        """Return the log ordered by time; equal times keep their order."""
        return self.take(np.argsort(self.timestamps_ms, kind="stable"))

    def to_arrow(self) -> Any:
        """Return a pyarrow table with columns user, item, type, value, timestamp_ms."""
        import pyarrow as pa

        return pa.table(
            {
                "user": pa.array(self.user_ids, pa.string()),
                "item": pa.array(self.item_ids, pa.string()),
                "type": pa.array(self.types, pa.uint8()),
                "value": pa.array(self.values, pa.float32()),
                "timestamp_ms": pa.array(self.timestamps_ms, pa.int64()),
            }
        )

    @classmethod
    def from_arrow(cls, table: Any) -> EventLog:
        """Build a log from the table that `to_arrow` writes (rows are sorted by time here)."""
        return cls(
            user_ids=np.asarray(table["user"].to_pylist(), dtype=object),
            item_ids=np.asarray(table["item"].to_pylist(), dtype=object),
            types=table["type"].to_numpy().astype(np.uint8),
            values=table["value"].to_numpy().astype(np.float32),
            timestamps_ms=table["timestamp_ms"].to_numpy().astype(np.int64),
        ).sorted_by_time()

    @classmethod
    def empty(cls) -> EventLog:
        """A log without events."""
        text = np.empty(0, dtype=object)
        return cls(text, text, np.empty(0, np.uint8), np.empty(0, np.float32), np.empty(0, np.int64))
