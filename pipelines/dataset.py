"""The imported form of a catalogue and its events: what every importer makes and `build` reads.

A folder with `dataset.json` (format, name, licence, counts), `items.parquet`, `events.parquet` and, where users
declared something about themselves, `users.parquet`; where items have reviews, `reviews.parquet`. Knows nothing of
where the data came from.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.catalog import Item
from models.events import EventLog
from models.reviews import Review, ReviewsByItem

FORMAT = 1
_HEAD, _ITEMS, _EVENTS, _USERS = "dataset.json", "items.parquet", "events.parquet", "users.parquet"
_REVIEWS = "reviews.parquet"


LabelsByItem = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Labels by item id."""


class DatasetError(Exception):
    """A data set folder is missing, incomplete or of another format; the message names the fix."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A catalogue with the events on it.

    Attributes:
        name: short name, also used in artifact metadata.
        items: the catalogue, in file order; ids are distinct.
        events: sorted by time; every event is on an item of `items`.
        users: declared attributes by user id, where the source has them.
        licence: under what terms the data may be used.
        left_out: rows that are not in here, counted by reason; nothing is left out silently.
        reviews: what people wrote about items, by item id.
    """

    name: str
    items: list[Item]
    events: EventLog
    users: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    licence: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    reviews: ReviewsByItem = field(default_factory=dict)


def with_labels(dataset: Dataset, labels: LabelsByItem) -> Dataset:
    """Return the data set with more labels on its items, in place of those of the same name."""
    if not labels:
        return dataset
    changed = (
        replace(item, labels={**item.labels, **more}) if (more := labels.get(item.item_id)) else item
        for item in dataset.items
    )
    return replace(dataset, items=list(changed))


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write `dataset` to `folder`. Effect: atomic; an older data set there is replaced.

    Raises DatasetError when `folder` holds something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if folder.exists() and not (folder / _HEAD).is_file() and any(folder.iterdir()):
        raise DatasetError(f"{folder}: holds something that is no data set; name an empty or new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        pq.write_table(_items_table(dataset.items), staging / _ITEMS)
        pq.write_table(dataset.events.to_arrow(), staging / _EVENTS)
        if dataset.users:
            attributes = [json.dumps(dict(a)) for a in dataset.users.values()]
            pq.write_table(pa.table({"user": list(dataset.users), "attributes": attributes}), staging / _USERS)
        if dataset.reviews:
            pq.write_table(_reviews_table(dataset.reviews), staging / _REVIEWS)
        head = {
            "format": FORMAT,
            "name": dataset.name,
            "licence": dataset.licence,
            "items": len(dataset.items),
            "events": len(dataset.events),
            "users": len(dataset.users),
            "reviews": sum(map(len, dataset.reviews.values())),
            "left_out": dict(dataset.left_out),
        }
        (staging / _HEAD).write_text(json.dumps(head, indent=1), "utf-8")
        if folder.exists():
            os.replace(folder, old := Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent)))
            shutil.rmtree(old, ignore_errors=True)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_dataset(folder: Path) -> Dataset:
    """Read what `write_dataset` wrote. Raises DatasetError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        head = json.loads((folder / _HEAD).read_text("utf-8"))
        if head["format"] != FORMAT:
            raise DatasetError(f"{folder}: format {head['format']}, this version reads {FORMAT}; import it again")
        items = _items(pq.read_table(folder / _ITEMS))
        events = EventLog.from_arrow(pq.read_table(folder / _EVENTS))
        users = _users(pq.read_table(folder / _USERS)) if head["users"] else {}
        written = head.get("reviews", 0)  # data sets of earlier versions have none
        reviews = _reviews(pq.read_table(folder / _REVIEWS)) if written else {}
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: {Path(error.filename or '').name} missing; run `raycommend import`") from error
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException) as error:
        raise DatasetError(f"{folder}: not a readable data set ({error}); import it again") from error
    counts = (len(items), len(events), len(users), sum(map(len, reviews.values())))
    if counts != (head["items"], head["events"], head["users"], written):
        raise DatasetError(f"{folder}: holds other counts than {_HEAD} says; import it again")
    return Dataset(head["name"], items, events, users, head["licence"], head["left_out"], reviews)


def _items_table(items: list[Item]) -> Any:
    """Attributes are one JSON text per item, so that any set of names round-trips without a wide schema."""
    import pyarrow as pa

    text = pa.string()
    columns = {
        "id": pa.array([i.item_id for i in items], text),
        "title": pa.array([i.title for i in items], text),
        "text": pa.array([i.text for i in items], text),
        "labels": pa.array([json.dumps({n: list(v) for n, v in i.labels.items()}) for i in items], text),
        "numbers": pa.array([json.dumps(dict(i.numbers)) for i in items], text),
    }
    if any(i.media for i in items):
        columns["media"] = pa.array([json.dumps(dict(i.media)) for i in items], text)
    return pa.table(columns)


def _items(table: Any) -> list[Item]:
    columns = [table[name].to_pylist() for name in ("id", "title", "text", "labels", "numbers")]
    media = table["media"].to_pylist() if "media" in table.column_names else ["{}"] * len(table)
    return [
        Item(
            item_id,
            title,
            text,
            {n: tuple(v) for n, v in json.loads(labels).items()},
            json.loads(numbers),
            json.loads(m),
        )
        for item_id, title, text, labels, numbers, m in zip(*columns, media, strict=True)
    ]


def _users(table: Any) -> dict[str, dict[str, str]]:
    pairs = zip(table["user"].to_pylist(), table["attributes"].to_pylist(), strict=True)
    return {user: json.loads(attributes) for user, attributes in pairs}


def _reviews_table(reviews: ReviewsByItem) -> Any:
    import pyarrow as pa

    rows = [(item, review) for item, found in reviews.items() for review in found]
    return pa.table(
        {
            "item": pa.array([item for item, _ in rows], pa.string()),
            "text": pa.array([r.text for _, r in rows], pa.string()),
            "rating": pa.array([r.rating for _, r in rows], pa.float64()),
            "writer": pa.array([r.writer for _, r in rows], pa.int32()),
            "time_ms": pa.array([r.time_ms for _, r in rows], pa.int64()),
        }
    )


def _reviews(table: Any) -> ReviewsByItem:
    found: dict[str, list[Review]] = {}
    columns = [table[name].to_pylist() for name in ("item", "text", "rating", "writer", "time_ms")]
    for item, *review in zip(*columns, strict=True):
        found.setdefault(item, []).append(Review(*review))
    return {item: tuple(rows) for item, rows in found.items()}
