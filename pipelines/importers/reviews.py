"""Reviews: checks one row at a time and keeps the good ones without who wrote them.

Fields of a row: `item`, `text`, and optional `rating` (0 to 5), `user` and `time`. Called by the generic importer.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from models.explain.clean import clean_text
from models.reviews import MAX_CHARS, RATING_MOST, Review, ReviewsByItem
from pipelines.importers.readers import Row, delimited, rows_of
from pipelines.importers.rows import BadRow, checked_id, checked_number, checked_text, checked_time, known_fields

_FIELDS = frozenset({"item", "text", "rating", "user", "time"})


class ReviewRows:
    """Collects reviews of known items."""

    def __init__(self, items: Iterable[str]) -> None:
        """`items` are the ids that reviews may be about."""
        self._items = set(items)
        self._found: dict[str, list[Review]] = defaultdict(list)
        self._writers: dict[str, dict[str, int]] = defaultdict(dict)
        self._nameless = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Check and keep one review. Raises BadRow; the reason never quotes text or user."""
        known_fields(row, _FIELDS)
        item = checked_id(row, "item")
        if item not in self._items:
            raise BadRow(f"unknown item: {item} is not among the items")
        text = clean_text(checked_text(row, "text", MAX_CHARS), limit=MAX_CHARS)
        if not any(c.isalpha() for c in text):
            raise BadRow("text: missing, or nothing in it can be read")
        rating = None if row.get("rating") is None else checked_number(row["rating"], "rating")
        if rating is not None and not 0 <= rating <= RATING_MOST:
            raise BadRow(f"rating: not between 0 and {RATING_MOST:g}")
        at = 0 if row.get("time") is None else checked_time(row["time"])
        user = None if row.get("user") is None else checked_id(row, "user")
        self._found[item].append(Review(text, rating, self._writer(item, user), at))

    def reviews(self) -> ReviewsByItem:
        """Return all reviews by item, newest first; equal times in the order of the rows."""
        return {item: tuple(sorted(rows, key=lambda r: -r.time_ms)) for item, rows in self._found.items()}

    def _writer(self, item: str, user: str | None) -> int:
        numbers = self._writers[item]
        if user is None:
            self._nameless += 1
            user = f" {self._nameless}"  # no valid id starts with a space
        return numbers.setdefault(user, len(numbers))


def review_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a `.csv`, `.jsonl` or `.parquet` file. Raises ImportFailed."""
    if path.suffix != ".csv":
        return rows_of(path)
    return ((number, row if isinstance(row, BadRow) else _from_csv(row)) for number, row in delimited(path))


def _from_csv(row: Mapping[str, Any]) -> dict[str, Any]:
    """A CSV holds text alone: an empty cell is no value, and what looks like a number where one belongs is one."""
    found: dict[str, Any] = {name: cell for name, cell in row.items() if cell.strip()}
    if "rating" in found:
        with contextlib.suppress(ValueError):  # else it stays text, and is refused as such
            found["rating"] = float(found["rating"])
    if found.get("time", "").isdecimal():
        found["time"] = int(found["time"])
    return found
