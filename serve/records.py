"""Served records: what was returned to whom, always, as Parquet by day.

A record is at most 1 KB of columns: item ids, source bits, scores, release, degraded reasons. The queue is
bounded; what does not fit is dropped and counted, never waited for. Called by the ingress.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger("raycommend.records")


@dataclass(frozen=True, slots=True)
class ServedRecord:
    """One answer, as training and experiments will read it."""

    decision_id: str
    owner: str | None
    release: str
    served_ms: int
    item_ids: list[str]
    sources: list[int]
    scores: list[float]
    degraded: list[str]


class ServedRecords:
    """A bounded queue drained to `<folder>/day=YYYY-MM-DD/part-*.parquet` by a background task."""

    def __init__(
        self, folder: Path, *, dropped: Callable[[], None], capacity: int = 4096, flush_s: float = 2.0
    ) -> None:
        """`dropped` is called once per record that did not fit or could not be written."""
        self._folder = folder
        self._dropped = dropped
        self._capacity = capacity
        self._flush_s = flush_s
        self._queue: list[ServedRecord] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start draining; needs a running event loop."""
        self._task = asyncio.create_task(self._drain())

    def put(self, record: ServedRecord) -> None:
        """Queue a record without waiting."""
        if len(self._queue) >= self._capacity:
            self._dropped()
        else:
            self._queue.append(record)

    async def stop(self) -> None:
        """Write what is queued and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._flush()

    async def _drain(self) -> None:
        while True:
            await asyncio.sleep(self._flush_s)
            await self._flush()

    async def _flush(self) -> None:
        batch, self._queue = self._queue, []
        if not batch:
            return
        try:
            await asyncio.get_running_loop().run_in_executor(None, write_records, self._folder, batch)
        except Exception as error:
            # A full disk costs these records, not the ones after them: draining goes on.
            log.warning("%d served records could not be written: %s", len(batch), type(error).__name__)
            for _ in batch:
                self._dropped()


def write_records(folder: Path, records: list[ServedRecord]) -> Path:
    """Write one Parquet file of records into the folder of today; atomic."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    day = folder / f"day={time.strftime('%Y-%m-%d', time.gmtime())}"
    day.mkdir(parents=True, exist_ok=True, mode=0o700)
    final = day / f"part-{uuid.uuid4().hex}.parquet"
    partial = final.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist([asdict(r) for r in records]), partial)
    partial.rename(final)
    return final
