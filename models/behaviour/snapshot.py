"""`LiveStatistics`: all buckets' live statistics as one immutable snapshot, by item id.

Ids, not rows: a snapshot outlives releases, and items no catalog knows yet are in it. Made by the event consumer,
published through the store, mapped onto a release by retrievers. Knows nothing of either.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.behaviour.live import ItemState
from models.behaviour.statistics import Statistics
from models.catalog import ItemCatalog
from models.events import POSITIVE_TYPES, EventType

_POSITIVE = np.array([int(t) for t in sorted(POSITIVE_TYPES)])
_ARRAYS = ("counts", "decayed", "users", "first_ms", "offsets", "followers", "weights", "clock")


class SnapshotInvalid(Exception):
    """Bytes are no snapshot of this version."""


@dataclass(frozen=True, slots=True)
class LiveStatistics:
    """One row per item, ids ascending.

    `counts` and `decayed` float32[items, event types]; `decayed` as of `as_of_ms`, the newest event. `users` int32
    (distinct), `first_ms` int64. Row `i` was followed by the rows `followers[offsets[i]:offsets[i+1]]` (int32) with
    `weights` (float32, decayed counts). `clock` float64[2]: `as_of_ms` and the half-life in ms.
    """

    item_ids: tuple[str, ...]
    counts: npt.NDArray[np.float32]
    decayed: npt.NDArray[np.float32]
    users: npt.NDArray[np.int32]
    first_ms: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    followers: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    clock: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.item_ids)

    @property
    def as_of_ms(self) -> int:
        """Time of the newest event; 0 without events."""
        return int(self.clock[0])

    @property
    def events(self) -> int:
        """How many events are counted."""
        return int(self.counts.sum(dtype=np.float64))

    def to_bytes(self) -> bytes:
        """Return the snapshot as a compressed npz."""
        out = io.BytesIO()
        ids = np.frombuffer("\n".join(self.item_ids).encode(), np.uint8)
        np.savez_compressed(out, ids=ids, **{name: getattr(self, name) for name in _ARRAYS})
        return out.getvalue()

    @classmethod
    def from_bytes(cls, body: bytes) -> LiveStatistics:
        """Read what `to_bytes` wrote. Raises SnapshotInvalid."""
        try:
            with np.load(io.BytesIO(body), allow_pickle=False) as read:
                text = read["ids"].tobytes().decode("ascii")
                found = cls(tuple(text.split("\n")) if text else (), *(read[name] for name in _ARRAYS))
        except (ValueError, KeyError, OSError, zipfile.BadZipFile, EOFError) as error:
            raise SnapshotInvalid(f"not a statistics snapshot: {error}") from None
        if not len(found) == len(found.counts) == len(found.users) == len(found.offsets) - 1:
            raise SnapshotInvalid("the columns of the statistics snapshot differ in length")
        return found

    def added_to(self, statistics: Statistics, catalog: ItemCatalog) -> tuple[Statistics, int]:
        """Return a release's statistics plus these, and how many items of these the catalog does not know.

        What the release counted does not age here: its log may have ended long ago, and is still the best guess for
        items that nobody touched since.
        """
        rows = catalog.rows(self.item_ids)
        known = rows >= 0
        at = rows[known]
        popularity, recent = np.array(statistics.popularity), np.array(statistics.recent)
        users, first_ms = np.array(statistics.users), np.array(statistics.first_ms)
        popularity[at] += self.counts[known][:, _POSITIVE].sum(axis=1)
        recent[at] += self.decayed[known][:, _POSITIVE].sum(axis=1)
        users[at] += self.users[known]
        np.minimum.at(first_ms, at, self.first_ms[known])
        as_of = np.maximum(statistics.as_of_ms, np.int64(self.as_of_ms))
        return Statistics(popularity, recent, users, first_ms, as_of), int((~known).sum())


def merge(buckets: Iterable[Mapping[str, ItemState]], *, half_life_ms: float) -> LiveStatistics:
    """Sum the states of all buckets. Distinct users add up, because a user lives in one bucket."""
    parts = [(item_id, state) for bucket in buckets for item_id, state in bucket.items()]
    ids = sorted({i for i, _ in parts} | {f for _, state in parts for f in state.followers})
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    as_of_ms = max((state.last_ms for _, state in parts), default=0)
    newest = as_of_ms / half_life_ms
    counts = np.zeros((len(ids), len(EventType)), np.float64)
    decayed = np.zeros_like(counts)
    users, first = np.zeros(len(ids), np.int32), np.full(len(ids), np.iinfo(np.int64).max)
    links: dict[tuple[int, int], float] = {}
    for item_id, state in parts:
        row = row_of[item_id]
        users[row] += state.users
        first[row] = min(int(first[row]), state.first_ms)
        for kind, count in state.counts.items():
            counts[row, kind] += count
            decayed[row, kind] += 2.0 ** (state.weights[kind] - newest)
        for follower, weight in state.followers.items():
            link = (row, row_of[follower])
            links[link] = links.get(link, 0.0) + 2.0 ** (weight - newest)
    pairs = np.array(sorted(links), np.int64).reshape(-1, 2)
    return LiveStatistics(
        item_ids=tuple(ids),
        counts=counts.astype(np.float32),
        decayed=decayed.astype(np.float32),
        users=users,
        first_ms=first,
        offsets=np.searchsorted(pairs[:, 0], np.arange(len(ids) + 1)).astype(np.int64),
        followers=pairs[:, 1].astype(np.int32),
        weights=np.array([links[a, b] for a, b in pairs.tolist()], np.float32),
        clock=np.array([as_of_ms, half_life_ms], np.float64),
    )
