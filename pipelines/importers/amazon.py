"""Amazon reviews, Industrial and Scientific, as MiniOneRec prepared them: 3,686 products with long texts.

A folder with `*.item.json` (title, description, brand by number) and the next-item tables `valid.csv` and `test.csv`.
The tables are in the order of time but hold no times, so times are made up that keep every order they tell: a table's
rows are an hour apart from `VALID_MS` or `TEST_MS` on, and what a user's first row names as history came before the
first row of its table. Differences between such times mean nothing, only their order does. Called through the
registry.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.progress import Progress, silent
from pipelines.dataset import Dataset
from pipelines.importers.collect import collect
from pipelines.importers.readers import Row, delimited
from pipelines.importers.rejects import ImportFailed, Rejects
from pipelines.importers.rows import BadRow, EventRows, ItemRows

HOUR_MS = 3_600_000
_MOST_ROWS = 9_000
VALID_MS = 1_500_000_000_000
"""When the first row of `valid.csv` is said to have happened."""
TEST_MS = VALID_MS + 10_000 * HOUR_MS
"""When the first row of `test.csv` is said to have happened."""
VALID_END_MS = VALID_MS + _MOST_ROWS * HOUR_MS
"""Everything that `valid.csv` tells is before this moment, and nothing that only `test.csv` tells."""
TABLES = {"valid.csv": VALID_MS, "test.csv": TEST_MS}
_LICENCE = (
    "Amazon Reviews 2018, Industrial and Scientific, as prepared by MiniOneRec: research use, no formal licence; "
    "cite Ni et al. 2019, doi:10.18653/v1/D19-1018"
)


def amazon_industrial(path: Path, *, rejects: Path, max_bad_rows: int = 0, progress: Progress = silent) -> Dataset:
    """Import the folder `path`. Raises ImportFailed.

    A history names at most ten items, so a user's oldest ones are not known. Every event is a `purchase`. The columns
    `*_sid` are the authors' own codes and are not read.
    """
    items_file = next(iter(sorted(path.glob("*.item.json"))), None)
    if items_file is None:
        raise ImportFailed(f"{path}: holds no *.item.json; name the folder of the data set")
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    items = ItemRows()
    try:
        collect(items_file, _numbered(items_file), items.add, rejects=bad, progress=progress, shape=_item)
        events = EventRows(item.item_id for item in items.items)
        known: set[str] = set()
        for name, start_ms in TABLES.items():
            collect(path / name, _table(path / name, start_ms, known), events.add, rejects=bad, progress=progress)
        bad.finish()
    finally:
        bad.close()
    return Dataset("amazon-industrial", items.items, events.log(), licence=_LICENCE, left_out=dict(bad.reasons))


def _numbered(file: Path) -> Iterator[Row]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ImportFailed(f"{file}: not readable JSON ({error})") from error
    if not isinstance(found, dict):
        raise ImportFailed(f"{file}: not an object of items by number")
    for number, (name, item) in enumerate(found.items(), start=1):
        yield number, {"id": name, **item} if isinstance(item, dict) else BadRow("item: not an object")


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    brand = str(row.get("brand") or "").strip()
    return {
        "id": row["id"],
        "title": row.get("title"),
        "text": _description(row.get("description")),
        "attributes": {"brand": brand} if brand else {},
    }


def _description(given: Any) -> str:
    """The description is a list of texts as Python prints it; a few are cut off in the middle and read as text."""
    text = given.strip() if isinstance(given, str) else ""
    if text.startswith("["):
        try:
            text = " ".join(str(part) for part in ast.literal_eval(text))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            text = text.strip("['\"")
    return " ".join(text.split())


def _table(file: Path, start_ms: int, known: set[str]) -> Iterator[Row]:
    """Yield the events that a table tells, each with the number of its row; `known` are users of rows before."""
    for at, (number, row) in enumerate(delimited(file)):
        if isinstance(row, BadRow):
            yield number, row
            continue
        if at >= _MOST_ROWS:
            raise ImportFailed(f"{file}: more than {_MOST_ROWS} rows; is this the right data set?")
        try:
            user, item, past = row["user_id"], row["item_id"], _ids(row["history_item_id"])
        except KeyError as error:
            raise ImportFailed(f"{file}: no column {error}; is this the right data set?") from error
        except BadRow as error:
            yield number, error
            continue
        if user not in known:
            for back, earlier in enumerate(reversed(past), start=1):
                yield number, _event(user, earlier, start_ms - back * HOUR_MS)
        known.add(user)
        yield number, _event(user, item, start_ms + at * HOUR_MS)


def _event(user: str, item: str, time_ms: int) -> dict[str, Any]:
    return {"user": user, "item": item, "type": "purchase", "time": time_ms}


def _ids(text: str) -> list[str]:
    """Return the ids of a printed list of numbers."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    ids = [part.strip() for part in inner.split(",")] if inner.strip() else []
    if not all(part.isdecimal() for part in ids):
        raise BadRow("history_item_id: not a list of numbers")
    return ids
