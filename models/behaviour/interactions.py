"""The positive events of a log as integer columns, grouped by user: what every fit in this package reads.

Called by the fits of this package and by evaluation. Knows nothing of models or stores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.events import POSITIVE_TYPES, EventLog


@dataclass(frozen=True, slots=True)
class Interactions:
    """Positive events of known items, sorted by user, then time (equal times keep the order of the log).

    `users` int32 codes 0..n_users-1, `rows` int32 catalog rows, `timestamps_ms` int64, of equal length.
    """

    users: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int32]
    timestamps_ms: npt.NDArray[np.int64]
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.rows)


def interactions_of(log: EventLog, catalog: ItemCatalog) -> Interactions:
    """Keep the events of `POSITIVE_TYPES` whose item the catalog holds, as codes and rows."""
    positive = np.flatnonzero(np.isin(log.types, [int(t) for t in POSITIVE_TYPES]))
    distinct = list(dict.fromkeys(log.item_ids[positive]))
    row_of = dict(zip(distinct, catalog.rows(distinct).tolist(), strict=True))
    rows = np.fromiter((row_of[i] for i in log.item_ids[positive]), np.int32, len(positive))
    kept = positive[rows >= 0]
    code_of: dict[str, int] = {}
    users = np.fromiter((code_of.setdefault(u, len(code_of)) for u in log.user_ids[kept]), np.int32, len(kept))
    order = np.lexsort((log.timestamps_ms[kept], users))
    return Interactions(
        users[order], rows[rows >= 0][order], log.timestamps_ms[kept][order], len(code_of), len(catalog)
    )
