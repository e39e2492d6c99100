"""The user's state as the sources read it: history as catalog rows with ages, seeds, intent, what they declared.

Built once per query by the engine. Knows nothing of scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.declared import Labels, strength
from models.events import POSITIVE_TYPES, EventType
from models.opinion import Rows
from models.retrieval.query import RetrievalQuery

_POSITIVE = np.zeros(256, dtype=bool)
_POSITIVE[[int(t) for t in POSITIVE_TYPES]] = True


@dataclass(frozen=True, slots=True)
class UserState:
    """What one user took, oldest first, seed items last, as columns of equal length.

    `rows` int32 catalog rows (may repeat), `ages_ms` int64 before `now_ms`. `seeds` are the rows of the seed
    items alone. `refused` are rows the user hid or disliked after taking them last. `intent` is a vector of
    length 1 at most.
    `unseen` says that the answer leaves out what they have touched. `labels` (declared, or named by the request) and
    `declared`, the vector of a declaration, of length 1 at most, shorter with every event; both are empty once there is
    enough history.
    """

    rows: Rows
    ages_ms: npt.NDArray[np.int64]
    seeds: Rows
    refused: Rows
    now_ms: int
    intent: npt.NDArray[np.float32] | None
    unseen: bool = True
    labels: Labels = ()
    declared: npt.NDArray[np.float32] | None = None
    strength: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)

    def within(self, items: int) -> UserState:
        """Return the same state without the rows from `items` on."""
        if not (self.rows >= items).any():
            return self
        known = self.rows < items
        seeds = self.seeds[self.seeds < items]
        return replace(self, rows=self.rows[known], ages_ms=self.ages_ms[known], seeds=seeds)


def state_of(query: RetrievalQuery, catalog: ItemCatalog, *, dimension: int, declared_events: int) -> UserState:
    """Map the query's user to rows. Events after `now_ms` and unknown items do not exist.

    A declared vector that is not of `dimension` (that of texts) says nothing: another encoder made it.
    """
    seeds = catalog.rows(query.seed_items)
    seeds = seeds[seeds >= 0]
    rows, ages, refused = _history(query, catalog)
    left = strength(len(rows) + len(seeds), over=declared_events)
    said = query.user.declared if query.personal else None
    labels = query.context + (said.labels if said is not None else ())
    vector = None if said is None or left <= 0 else said.vector
    if vector is not None:
        vector = np.asarray(vector * np.float32(left), np.float32) if len(vector) == dimension else None
    return UserState(
        rows=np.concatenate([rows, seeds]),
        ages_ms=np.concatenate([ages, np.zeros(len(seeds), np.int64)]),
        seeds=seeds,
        refused=refused,
        now_ms=query.now_ms,
        intent=query.intent,
        unseen=query.exclude_seen,
        labels=tuple(dict.fromkeys(labels)) if left > 0 else (),
        declared=vector,
        strength=left,
    )


def _history(query: RetrievalQuery, catalog: ItemCatalog) -> tuple[Rows, npt.NDArray[np.int64], Rows]:
    none = np.empty(0, np.int32)
    if not query.personal or not len(query.user):
        return none, np.empty(0, np.int64), none
    user = query.user
    rows = catalog.rows(user.item_ids)
    exists = (rows >= 0) & (user.timestamps_ms <= query.now_ms)
    positive = exists & _POSITIVE[user.types]
    refused = none
    against = exists & ((user.types == EventType.hide) | (user.types == EventType.dislike))
    if against.any():
        last = {int(r): bool(a) for r, a in zip(rows[exists], against[exists], strict=True)}
        refused = np.fromiter((r for r, a in last.items() if a), np.int32)
    return rows[positive], query.now_ms - user.timestamps_ms[positive], refused
