"""What a user's own past says of each candidate they took before: how often, how lately, and whether it is time again.

Columns of the fusion features for catalogs whose items are taken more than once; all zero where the answer leaves out
what the user has. Called by the fusion features. Knows nothing of sources or networks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.events import POSITIVE_TYPES
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]

NAMES = ("own_count", "own_recency", "own_share", "own_last", "own_due")
"""Times taken; how lately; the share of the user's visits it was taken at; whether at the last one; and how long ago
beside the usual gap, as a logarithm: above 0 it is due."""

_DAY_MS = 86_400_000.0
_POSITIVE = np.array([int(t) for t in POSITIVE_TYPES], np.uint8)
_LATEST = 1.5
"""Recency of what was taken now; it reaches 0, that of what was never taken, after more than a year."""


def own_columns(query: RetrievalQuery, catalog: ItemCatalog, rows: npt.NDArray[np.int32]) -> list[Floats]:
    """Return a float32[len(rows)] per name. Reads the user's stored events, and none after `now_ms`."""
    out = np.zeros((len(NAMES), len(rows)), np.float32)
    user = query.user
    if query.exclude_seen or not query.personal or not len(user) or not len(rows):
        return list(out)
    past = catalog.rows(user.item_ids)
    kept = np.flatnonzero((past >= 0) & (user.timestamps_ms <= query.now_ms) & np.isin(user.types, _POSITIVE))
    if not len(kept):
        return list(out)
    kept = kept[np.argsort(user.timestamps_ms[kept], kind="stable")]
    past, times = past[kept], user.timestamps_ms[kept]
    own, first, at, count = np.unique(past, return_index=True, return_inverse=True, return_counts=True)
    last = np.zeros(len(own), np.int64)
    last[at] = times  # the newest stays
    place = np.minimum(np.searchsorted(own, rows), len(own) - 1)
    found = own[place] == rows
    place = place[found]
    times_taken = count[place]
    since = (query.now_ms - last[place]) / _DAY_MS
    gap = (last[place] - times[first[place]]) / _DAY_MS / np.maximum(times_taken - 1, 1)
    due = np.clip(np.log((since + 1.0) / (gap + 1.0)), -2.0, 2.0)
    out[:, found] = [
        np.log1p(times_taken),
        _LATEST - np.log1p(since) / 4.0,
        times_taken / len(np.unique(times)),
        last[place] == times[-1],
        np.where(gap > 0, due, 0.0),
    ]
    return list(out)
