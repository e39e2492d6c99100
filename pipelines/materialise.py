"""Materialise: write the imported history of every user into the online store, so that the first request knows them.

Only profiles change: the statistics of the release already count these events, so they do not enter the streams
that feed statistics. Event ids are derived from their place in the log, so that a run cut short can be repeated.
"""

from __future__ import annotations

import time
from collections import defaultdict

from models.events import Event, EventLog, EventType
from models.ids import bucket_of
from models.progress import Progress, silent
from models.store.port import MAX_EVENTS_PER_CALL, OnlineStore


async def materialise(
    store: OnlineStore, log: EventLog, *, name: str, tenant: str = "main", progress: Progress = silent
) -> int:
    """Write all events of `log` (sorted by time) and return how many were new. Raises StoreError."""
    by_bucket: dict[int, list[int]] = defaultdict(list)
    for at, user in enumerate(log.user_ids):
        by_bucket[bucket_of(user)].append(at)
    now_ms, written, done = time.time_ns() // 1_000_000, 0, 0
    for rows in by_bucket.values():
        for start in range(0, len(rows), MAX_EVENTS_PER_CALL):
            batch = [_event(log, at, name) for at in rows[start : start + MAX_EVENTS_PER_CALL]]
            statuses = await store.append(tenant, batch, now_ms=now_ms, to_stream=False)
            written += sum(status == "accepted" for status in statuses)
            done += len(batch)
            progress("materialise", done, len(log))
    return written


def _event(log: EventLog, at: int, name: str) -> Event:
    return Event(
        event_id=f"{name}:{at}",
        owner=log.user_ids[at],
        type=EventType(int(log.types[at])),
        timestamp_ms=int(log.timestamps_ms[at]),
        item_id=log.item_ids[at],
        value=float(log.values[at]),
    )
