"""The part of a user's past that rankers read: recent items as catalog rows with type, value and age.

One function for training and serving, so that "recent" means one thing. Knows nothing of networks or stores.
Called by the fusion features, the compressed ranker and its training.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.events import EventType
from models.retrieval.query import RetrievalQuery

HISTORY_EVENTS = 30
"""How many of the latest events a ranker reads; older ones only act through the retrieval sources."""


@dataclass(frozen=True, slots=True)
class History:
    """Recent events of known items, oldest first, equal length ≤ `HISTORY_EVENTS`.

    `rows` int32 catalog rows; `types` uint8; `values` float32 (finite); `ages_s` float32 seconds before the
    request (≥ 0).
    """

    rows: npt.NDArray[np.int32]
    types: npt.NDArray[np.uint8]
    values: npt.NDArray[np.float32]
    ages_s: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


def recent_history(query: RetrievalQuery, catalog: ItemCatalog, *, limit: int = HISTORY_EVENTS) -> History:
    """Return the last `limit` events of `query` whose items the catalog holds; seed items count as the newest.

    Events after `now_ms` do not exist. Without `personal` only the seed items remain.
    """
    user = query.user
    if not query.personal or len(user) == 0:
        ids: tuple[str, ...] = ()
        kept = np.empty(0, np.int64)
    else:
        # A few spare events make up for items that have left the catalog since.
        kept = np.flatnonzero(user.timestamps_ms <= query.now_ms)[-limit - 8 :]
        ids = tuple(user.item_ids[i] for i in kept)
    seeds = query.seed_items[-limit:]
    rows = catalog.rows([*ids, *seeds])
    ages = (query.now_ms - user.timestamps_ms[kept]) / 1000.0 if len(kept) else np.empty(0)
    known = np.flatnonzero(rows >= 0)[-limit:]
    types = np.concatenate([user.types[kept], np.full(len(seeds), EventType.click, np.uint8)])
    values = np.concatenate([user.values[kept], np.ones(len(seeds), np.float32)])
    all_ages = np.concatenate([ages, np.zeros(len(seeds))])
    return History(
        rows[known].astype(np.int32),
        types[known].astype(np.uint8),
        np.clip(np.nan_to_num(values[known], nan=1.0), -1e6, 1e6).astype(np.float32),
        all_ages[known].astype(np.float32),
    )
