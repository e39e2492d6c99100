"""The generic form: bring your own catalogue and events as JSON lines or Parquet.

Items: `id`, `title`, `text` (optional), `attributes` (optional: name → text, list of texts, truth value (all three
become labels) or number). Events: `user`, `item`, `type` (an event type but search), `time` (whole milliseconds
since 1970, or ISO 8601; UTC where no zone is given), `value` (optional; a rating needs it). Ids match
`[A-Za-z0-9._:~-]{1,128}`; whole numbers count as their digits. Other fields are errors: a typo must not be lost.
Reviews, where there are some: `item`, `text`, and optional `rating` (0 to 5), `user`, `time`; also as CSV. Who wrote
one is not kept.
"""

from __future__ import annotations

from pathlib import Path

from models.progress import Progress, silent
from pipelines.dataset import Dataset
from pipelines.importers.collect import collect
from pipelines.importers.readers import rows_of
from pipelines.importers.rejects import Rejects
from pipelines.importers.reviews import ReviewRows, review_rows
from pipelines.importers.rows import EventRows, ItemRows


def generic(
    items_path: Path,
    events_path: Path,
    *,
    reviews: Path | None = None,
    rejects: Path,
    max_bad_rows: int = 0,
    progress: Progress = silent,
) -> Dataset:
    """Import a catalogue and its events; all files are read to the end, so that all bad rows are known at once.

    Args:
        items_path: `.jsonl` or `.parquet`; the data set is named after it.
        events_path: `.jsonl` or `.parquet`; every event must be on an item of `items_path`.
        reviews: `.jsonl`, `.parquet` or `.csv`; every review must be about an item of `items_path`.
        rejects: file that bad rows are written to, as JSON lines of file, row and reason.
        max_bad_rows: how many bad rows, over all files, are left out instead of failing.
        progress: told of rows read.

    Raises ImportFailed, naming the first ten bad rows.
    """
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    try:
        items = ItemRows()
        collect(items_path, rows_of(items_path), items.add, rejects=bad, progress=progress)
        events = EventRows(i.item_id for i in items.items)
        collect(events_path, rows_of(events_path), events.add, rejects=bad, progress=progress)
        said = ReviewRows(i.item_id for i in items.items)
        if reviews is not None:
            collect(reviews, review_rows(reviews), said.add, rejects=bad, progress=progress)
        bad.finish()
    finally:
        bad.close()
    left_out = dict(bad.reasons)
    return Dataset(items_path.stem, items.items, events.log(), left_out=left_out, reviews=said.reviews())
