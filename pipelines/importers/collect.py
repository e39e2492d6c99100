"""The loop every importer shares: rows in, checked columns out, bad rows written down.

Called by the importers. Knows nothing of formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from models.progress import Progress
from pipelines.importers.readers import Row
from pipelines.importers.rejects import Rejects
from pipelines.importers.rows import BadRow

_REPORT_EVERY = 20_000


def collect(
    file: Path,
    rows: Iterable[Row],
    add: Callable[[Mapping[str, Any]], None],
    *,
    rejects: Rejects,
    progress: Progress,
    shape: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Pass every row of `file` through `shape` (into the generic form) to `add`; reject what either refuses."""
    done = 0
    for done, (number, row) in enumerate(rows, start=1):
        try:
            if isinstance(row, BadRow):
                raise row
            add(shape(row) if shape else row)
        except BadRow as error:
            rejects.add(file, number, str(error))
        if done % _REPORT_EVERY == 0:
            progress(f"read {file.name}", done, None)
    progress(f"read {file.name}", done, done)
