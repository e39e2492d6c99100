"""Rejected rows: every row that cannot be used is written down with its number and reason, never silently dropped.

Called by every importer. Knows nothing of what makes a row bad.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TextIO

SHOWN = 10


class ImportFailed(Exception):
    """The input cannot be imported; the message lists the first bad rows and says what to do."""


class Rejects:
    """Collects bad rows of one import; writes them as JSON lines of file, row and reason.

    Rows count from 1. Reasons never quote user ids or texts, so file and log can be shown around. The file is made
    at the first bad row; an older one is removed at the start.
    """

    def __init__(self, path: Path, *, max_bad_rows: int = 0) -> None:
        """`max_bad_rows` is how many bad rows, over all files, an import survives."""
        self.path = path
        self.max_bad_rows = max_bad_rows
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self._first: list[str] = []
        self._file: TextIO | None = None
        path.unlink(missing_ok=True)

    def add(self, file: Path, row: int, reason: str) -> None:
        """Record a bad row. Effect: one line in the rejects file."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        self._file.write(json.dumps({"file": file.name, "row": row, "reason": reason}, ensure_ascii=False) + "\n")
        self.count += 1
        self.reasons[reason.partition(":")[0]] += 1
        if len(self._first) < SHOWN:
            self._first.append(f"  {file.name} row {row}: {reason}")

    def finish(self) -> None:
        """Close the file. Raises ImportFailed when there were more bad rows than allowed."""
        self.close()
        if self.count > self.max_bad_rows:
            more = f"\n  … and {self.count - SHOWN} more" if self.count > SHOWN else ""
            raise ImportFailed(
                f"{self.count} bad rows, {self.max_bad_rows} allowed; all are listed in {self.path}\n"
                + "\n".join(self._first)
                + f"{more}\nCorrect these rows, or leave them out with --max-bad-rows {self.count}"
            )

    def close(self) -> None:
        """Close the file; further rows would start a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None
