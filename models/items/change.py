"""One change of an item, as the item log holds it, and how it becomes bytes.

Changes are made by the ingress and replayed by every replica in the order of the log, so whatever they do to an item
depends on nothing but the log and the release. Knows nothing of stores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.catalog import Item
from models.ids import is_valid_id

Operation = Literal["put", "patch", "remove"]
Attributes = Mapping[str, tuple[str, ...] | float | None]
_VERSION = 1
_OPERATIONS: tuple[Operation, ...] = ("put", "patch", "remove")


@dataclass(frozen=True, slots=True)
class ItemChange:
    """A new version of an item (`put`), some of its fields (`patch`), or its end (`remove`).

    A `patch` leaves what is None here as it is; in `attributes` it names the changed ones, None for one that goes.
    `vector` is the unit vector of the item's new text, float32[dim]; None where the text stays the same. `tag` says
    which encoder made it (`models.intent.encoder_tag`; empty for what was logged before there were tags). `media` names
    pictures and sounds that change, "" for one that goes; they are read by the next release, and until then the item is
    compared by its text alone. A `put` that names the same ones as the release keeps them. `hidden` and `available`
    both decide whether an item may be recommended; a hidden one has no page of similar items either.
    """

    operation: Operation
    item_id: str
    time_ms: int
    title: str | None = None
    text: str | None = None
    attributes: Attributes = field(default_factory=dict)
    hidden: bool | None = None
    available: bool | None = None
    vector: npt.NDArray[np.float32] | None = None
    media: Mapping[str, str] = field(default_factory=dict)
    tag: bytes = b""

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Return the change as JSON, and its vector (empty without one)."""
        body: dict[str, Any] = {
            "v": _VERSION,
            "op": self.operation,
            "id": self.item_id,
            "t": self.time_ms,
            "title": self.title,
            "text": self.text,
            "attributes": dict(self.attributes),
            "hidden": self.hidden,
            "available": self.available,
        }
        if self.media:
            body["media"] = dict(self.media)
        if self.tag:
            body["tag"] = self.tag.hex()
        vector = b"" if self.vector is None else self.vector.astype("<f4").tobytes()
        return json.dumps(body, separators=(",", ":")).encode(), vector

    @classmethod
    def from_bytes(cls, body: bytes, vector: bytes) -> ItemChange | None:
        """Return what `to_bytes` made, None where the bytes are not of this version."""
        try:
            read = json.loads(body)
            if read["v"] != _VERSION or read["op"] not in _OPERATIONS or not is_valid_id(read["id"]):
                return None
            return cls(
                read["op"],
                read["id"],
                int(read["t"]),
                read["title"],
                read["text"],
                {str(name): _attribute(value) for name, value in read["attributes"].items()},
                read["hidden"],
                read["available"],
                np.frombuffer(vector, "<f4").astype(np.float32) if vector else None,
                {str(name): str(where) for name, where in read.get("media", {}).items()},
                bytes.fromhex(read.get("tag", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


Numbered = tuple[int, ItemChange | None]
"""A change with its number in the log; None where the stored bytes are not one of this version."""


@dataclass(frozen=True, slots=True)
class LiveItem:
    """An item as the log left it. `vector`, made as `tag` says, is None where its text is still that of the release."""

    item: Item
    hidden: bool = False
    available: bool = True
    removed: bool = False
    changed_ms: int = 0
    vector: npt.NDArray[np.float32] | None = None
    tag: bytes = b""

    @property
    def shown(self) -> bool:
        """Whether it may be recommended."""
        return self.available and not self.hidden and not self.removed

    def after(self, change: ItemChange) -> LiveItem:
        """Return the item after one more change. What was removed comes back by a `put` alone."""
        if change.operation == "remove":
            return LiveItem(self.item, removed=True, changed_ms=change.time_ms, vector=self.vector, tag=self.tag)
        if change.operation == "put":
            return new_item(change)
        if self.removed:
            return self
        return LiveItem(
            patched(self.item, change),
            hidden=self.hidden if change.hidden is None else change.hidden,
            available=self.available if change.available is None else change.available,
            changed_ms=change.time_ms,
            vector=self.vector if change.vector is None else change.vector,
            tag=self.tag if change.vector is None else change.tag,
        )


def new_item(change: ItemChange) -> LiveItem:
    """Return the item that a `put` describes."""
    blank = Item(change.item_id, "")
    return LiveItem(
        patched(blank, change),
        hidden=bool(change.hidden),
        available=change.available is not False,
        changed_ms=change.time_ms,
        vector=change.vector,
        tag=change.tag,
    )


def patched(item: Item, change: ItemChange) -> Item:
    """Return `item` with the fields that `change` gives."""
    labels, numbers = dict(item.labels), dict(item.numbers)
    for name, value in change.attributes.items():
        labels.pop(name, None)
        numbers.pop(name, None)
        if isinstance(value, tuple):
            labels[name] = value
        elif value is not None:
            numbers[name] = value
    title = item.title if change.title is None else change.title
    text = item.text if change.text is None else change.text
    media = {name: where for name, where in {**item.media, **change.media}.items() if where}
    return Item(item.item_id, title, text, labels, numbers, media)


def _attribute(value: Any) -> tuple[str, ...] | float | None:
    if isinstance(value, list):
        return tuple(str(v) for v in value)
    return None if value is None else float(value)
