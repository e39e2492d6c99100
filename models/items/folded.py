"""What the item log did to a catalog before its release was made, kept beside the catalog.

The next build starts from here, because the log itself is cut; and a release knows from here which of its items are
hidden. Written by the build, read by the build after it and by every process that loads the release.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from models.catalog import Item, ItemCatalog
from models.items.change import LiveItem

FOLDED_FILE = "live.jsonl"


def write_folded(items: Mapping[str, LiveItem], folder: Path) -> None:
    """Write the items that changed since the import, by id; nothing where there are none."""
    if not items:
        return
    with (folder / FOLDED_FILE).open("w", encoding="utf-8") as file:
        for live in items.values():
            file.write(_line(live) + "\n")


def read_folded(folder: Path) -> dict[str, LiveItem]:
    """Return what `write_folded` wrote into `folder`, without vectors. Raises ValueError on a damaged file."""
    file = folder / FOLDED_FILE
    if not file.is_file():
        return {}
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            labels = {str(name): tuple(values) for name, values in row["labels"].items()}
            media = {str(name): str(where) for name, where in row.get("media", {}).items()}
            item = Item(row["id"], row["title"], row["text"], labels, row["numbers"], media)
            found[item.item_id] = LiveItem(item, row["hidden"], row["available"], row["removed"], row["t"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{FOLDED_FILE}: not a list of changed items ({type(error).__name__})") from error
    return found


def withheld_rows(folder: Path, catalog: ItemCatalog) -> dict[int, LiveItem]:
    """Return, by row, the items of a release that were hidden or not available when it was made."""
    rows = ((catalog.row(item_id), live) for item_id, live in read_folded(folder).items() if not live.shown)
    return {row: live for row, live in rows if row is not None}


def _line(live: LiveItem) -> str:
    item = live.item
    row = {
        "id": item.item_id,
        "title": item.title,
        "text": item.text,
        "labels": {name: list(values) for name, values in item.labels.items()},
        "numbers": dict(item.numbers),
        "hidden": live.hidden,
        "available": live.available,
        "removed": live.removed,
        "t": live.changed_ms,
    }
    if item.media:
        row["media"] = dict(item.media)
    return json.dumps(row, ensure_ascii=True, separators=(",", ":"))
