"""The event log: every event that reached the store, as Parquet by the day it arrived, for training.

`<folder>/day=YYYY-MM-DD/*.parquet`. A file is written whole before its entries are acknowledged, so a crash may write
entries twice, never not at all; (bucket, entry id) tells them apart, and both reading and compacting keep one. What is
read depends on the entries alone: not on how they were spread over files, nor on the names of these. Called by the
consumer loop and by whoever trains. Knows nothing of stores.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from models.events import Event, EventLog
from models.store.streams import StreamEntry

_COMPACT = "all-"


def write_entries(folder: Path, entries: Iterable[tuple[int, StreamEntry]]) -> list[Path]:
    """Write (bucket, entry) pairs that have events, one file per day of arrival; durable when this returns."""
    by_day: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for bucket, entry in entries:
        if entry.event is not None:
            day = time.strftime("%Y-%m-%d", time.gmtime(entry.arrived_ms / 1000))
            by_day[day].append(_row(bucket, entry.entry_id, entry.event))
    written = []
    for day, rows in by_day.items():
        written.append(folder / f"day={day}" / f"part-{uuid.uuid4().hex}.parquet")
        _write(_table(rows), written[-1])
    return written


def compact(folder: Path, *, files: int) -> int:
    """Merge the files of every day that has at least `files` of them, dropping repeats; return how many went.

    The merged file is complete before the others go: a crash between leaves repeats, which no reader counts.
    """
    import pyarrow as pa

    gone = 0
    for day in sorted(folder.glob("day=*")):
        parts = sorted(day.glob("*.parquet"))
        if len(parts) < files:
            continue
        table = _in_order(pa.concat_tables([_read(p) for p in parts]))
        _write(table, day / f"{_COMPACT}{uuid.uuid4().hex}.parquet")
        for part in parts:
            part.unlink()
        gone += len(parts)
    return gone


def read_event_log(folder: Path) -> EventLog:
    """Return the whole log, each entry once; events without an item (searches) are left out.

    By time, and what a bucket got in one millisecond as it came: the order that trainings see is the same for the same
    entries, whatever files hold them.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = sorted(folder.glob("day=*/*.parquet"))
    if not parts:
        return EventLog.empty()
    table = _in_order(pa.concat_tables([_read(p) for p in parts]))
    return EventLog.from_arrow(table.filter(pc.is_valid(table["item"])))


def _row(bucket: int, entry_id: str, event: Event) -> dict[str, Any]:
    return {
        "bucket": bucket,
        "entry": entry_id,
        "event": event.event_id,
        "user": event.owner,
        "item": event.item_id,
        "type": int(event.type),
        "value": event.value,
        "timestamp_ms": event.timestamp_ms,
        "decision": event.decision_id,
    }


def _table(rows: Sequence[dict[str, Any]]) -> Any:
    import pyarrow as pa

    kinds = {"bucket": pa.uint16(), "type": pa.uint8(), "value": pa.float32(), "timestamp_ms": pa.int64()}
    names = ("bucket", "entry", "event", "user", "item", "type", "value", "timestamp_ms", "decision")
    return pa.Table.from_pylist(list(rows), schema=pa.schema([(n, kinds.get(n, pa.string())) for n in names]))


def _read(path: Path) -> Any:
    import pyarrow.parquet as pq

    # Not as a data set: the folder's name is not a column.
    return pq.ParquetFile(path).read()


def _in_order(table: Any) -> Any:
    """Return each entry once, by (time, bucket, entry id)."""
    import pyarrow as pa

    times, buckets = table["timestamp_ms"].to_pylist(), table["bucket"].to_pylist()
    entries = [tuple(map(int, entry.split("-"))) for entry in table["entry"].to_pylist()]
    first: dict[tuple[int, tuple[int, ...]], int] = {}
    for at, key in enumerate(zip(buckets, entries, strict=True)):
        first.setdefault(key, at)
    order = sorted(first.values(), key=lambda at: (times[at], buckets[at], entries[at]))
    return table.take(pa.array(order, pa.int64()))


def _write(table: Any, final: Path) -> None:
    import pyarrow.parquet as pq

    final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = final.with_suffix(".partial")
    with partial.open("wb") as out:
        pq.write_table(table, out, compression="zstd")
        out.flush()
        os.fsync(out.fileno())
    partial.rename(final)
    _sync(final.parent)


def _sync(folder: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
