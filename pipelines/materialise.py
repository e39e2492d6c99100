"""Materialise: write the imported history of every user into the online store, so that the first request knows them.

Only profiles change: the statistics of the release already count these events, so they do not enter the streams
that feed statistics. Event ids are derived from what happened, so that a run cut short, or an import with a few
more rows, can be repeated without writing anything twice.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict

from models.events import Event, EventLog, EventType
from models.ids import bucket_of
from models.progress import Progress, silent
from models.store.port import MAX_EVENTS_PER_CALL, OnlineStore


async def materialise(store: OnlineStore, log: EventLog, *, tenant: str = "main", progress: Progress = silent) -> int:
    """Write all events of `log` (sorted by time) and return how many were new. Raises StoreError."""
    by_bucket: dict[int, list[int]] = defaultdict(list)
    for at, user in enumerate(log.user_ids):
        by_bucket[bucket_of(user)].append(at)
    times_seen: Counter[str] = Counter()
    now_ms, written, done = time.time_ns() // 1_000_000, 0, 0
    for rows in by_bucket.values():
        for start in range(0, len(rows), MAX_EVENTS_PER_CALL):
            batch = [_event(log, at, times_seen) for at in rows[start : start + MAX_EVENTS_PER_CALL]]
            statuses = await store.append(tenant, batch, now_ms=now_ms, to_stream=False)
            written += sum(status == "accepted" for status in statuses)
            done += len(batch)
            progress("materialise", done, len(log))
    return written


def _event(log: EventLog, at: int, times_seen: Counter[str]) -> Event:
    parts = (log.user_ids[at], log.item_ids[at], log.types[at], log.values[at], log.timestamps_ms[at])
    what = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=12).hexdigest()
    times_seen[what] += 1  # the same thing twice in a log is two events
    return Event(
        event_id=f"import:{what}:{times_seen[what]}",
        owner=log.user_ids[at],
        type=EventType(int(log.types[at])),
        timestamp_ms=int(log.timestamps_ms[at]),
        item_id=log.item_ids[at],
        value=float(log.values[at]),
    )
