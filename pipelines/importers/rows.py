"""Rows to columns: checks one item or event row at a time and keeps the good ones compactly.

Every importer feeds dictionaries with the fields of the generic form; a bad row raises `BadRow` with a reason that
holds no user id. Called by the importers. Knows nothing of file formats.
"""

from __future__ import annotations

import math
import re
import time
from array import array
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from models.catalog import MODALITIES, REVIEWED, Item
from models.events import EventLog, EventType
from models.ids import is_valid_id

EARLIEST_MS = 631_152_000_000
"""1990-01-01: earlier times are seconds taken for milliseconds, not events."""
_DAY_MS = 86_400_000
_MAX_TITLE, _MAX_TEXT, _MAX_NAME = 1_000, 100_000, 64
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NAME = re.compile(r"[A-Za-z_]{1,40}")
_TYPES = {t.name: int(t) for t in EventType if t is not EventType.search}
_MAX_REFERENCE = 4096
_ITEM_FIELDS = frozenset({"id", "title", "text", "attributes", *MODALITIES})
_EVENT_FIELDS = frozenset({"user", "item", "type", "time", "value"})


class BadRow(Exception):
    """A row that cannot be used; the message is the reason."""


class ItemRows:
    """Collects items. Fields: id, title, and optional text, attributes, image, audio (a path or URL)."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._ids: set[str] = set()
        self._kinds: dict[str, str] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Check and keep one item. Raises BadRow."""
        known_fields(row, _ITEM_FIELDS)
        item_id = checked_id(row, "id")
        if item_id in self._ids:
            raise BadRow(f"duplicate item id: {item_id}")
        title = checked_text(row, "title", _MAX_TITLE)
        if not title:
            raise BadRow("title: missing or blank")
        labels, numbers = self._attributes(row.get("attributes"))
        media = {name: where for name in MODALITIES if (where := checked_text(row, name, _MAX_REFERENCE))}
        self.items.append(Item(item_id, title, checked_text(row, "text", _MAX_TEXT), labels, numbers, media))
        self._ids.add(item_id)

    def _attributes(self, given: Any) -> tuple[dict[str, tuple[str, ...]], dict[str, float]]:
        if given is None:
            return {}, {}
        if not isinstance(given, Mapping):
            raise BadRow(f"attributes: {type(given).__name__} where an object is expected")
        labels: dict[str, tuple[str, ...]] = {}
        numbers: dict[str, float] = {}
        for name, value in given.items():
            if not isinstance(name, str) or not 0 < len(name.strip()) <= _MAX_NAME:
                raise BadRow(f"attributes: a name must have 1 to {_MAX_NAME} characters")
            if value is None:
                continue
            if name in REVIEWED.values():
                raise BadRow(f"attribute {name}: only what reviews say has this name")
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[name] = checked_number(value, f"attribute {name}")
            elif texts := _labels(name, value):
                labels[name] = texts
        kinds = dict.fromkeys(labels, "label") | dict.fromkeys(numbers, "number")
        for name, kind in kinds.items():
            if self._kinds.get(name, kind) != kind:
                raise BadRow(f"attribute {name}: a {kind} here, but a {self._kinds[name]} in earlier rows")
        self._kinds |= kinds
        return labels, numbers


class EventRows:
    """Collects events as columns. Fields: user, item, type, time, value (optional)."""

    def __init__(self, items: Iterable[str]) -> None:
        """`items` are the ids that events may be on."""
        self._item_codes = {item_id: code for code, item_id in enumerate(items)}
        self._user_codes: dict[str, int] = {}
        self._users, self._items = array("i"), array("i")
        self._types, self._values, self._times = array("B"), array("f"), array("q")
        self._latest_ms = int(time.time() * 1000) + _DAY_MS

    def __len__(self) -> int:
        return len(self._times)

    def add(self, row: Mapping[str, Any]) -> None:
        """Check and keep one event. Raises BadRow."""
        if not row.keys() <= _EVENT_FIELDS:
            known_fields(row, _EVENT_FIELDS)
        user, item, kind = row.get("user"), row.get("item"), row.get("type")
        # An id that was seen before needs no second check; that is most of them.
        if not isinstance(user, str) or user not in self._user_codes:
            user = checked_id(row, "user")
        if not isinstance(item, str) or item not in self._item_codes:
            item = checked_id(row, "item")
            if item not in self._item_codes:
                raise BadRow(f"unknown item: {item} is not among the items")
        if not isinstance(kind, str) or kind not in _TYPES:
            raise BadRow(f"type: {_quoted(kind)} is none of {', '.join(_TYPES)}")
        at = checked_time(row.get("time"), latest_ms=self._latest_ms)
        given = row.get("value")
        if given is None and kind == "rating":
            raise BadRow("value: missing, a rating needs one")
        value = 1.0 if given is None else checked_number(given, "value")
        # A user gets a code only now: a bad row leaves no trace.
        self._users.append(self._user_codes.setdefault(user, len(self._user_codes)))
        self._items.append(self._item_codes[item])
        self._types.append(_TYPES[kind])
        self._values.append(value)
        self._times.append(at)

    def log(self) -> EventLog:
        """Return all events, sorted by time; equal times keep their order."""
        users = np.asarray(list(self._user_codes), dtype=object)
        items = np.asarray(list(self._item_codes), dtype=object)
        if not len(self):
            return EventLog.empty()
        return EventLog(
            user_ids=users[np.frombuffer(self._users, np.int32)],
            item_ids=items[np.frombuffer(self._items, np.int32)],
            types=np.array(self._types, np.uint8),
            values=np.array(self._values, np.float32),
            timestamps_ms=np.array(self._times, np.int64),
        ).sorted_by_time()


def checked_time(given: Any, *, latest_ms: int | None = None) -> int:
    """Return milliseconds since 1970, at most `latest_ms` (by default a day from now). Raises BadRow."""
    if type(given) is int:
        at = given
    elif isinstance(given, str | datetime):
        at = _milliseconds(given)
    elif given is None:
        raise BadRow("time: missing")
    else:
        raise BadRow(f"time: {type(given).__name__} where whole milliseconds or ISO 8601 text is expected")
    if at < EARLIEST_MS:
        raise BadRow(f"time: {at} ms is before 1990; were seconds given for milliseconds?")
    if at > (int(time.time() * 1000) + _DAY_MS if latest_ms is None else latest_ms):
        raise BadRow(f"time: {at} ms is in the future")
    return at


def _milliseconds(given: str | datetime) -> int:
    """Return milliseconds since 1970; a time without a zone is UTC."""
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise BadRow("time: text that is no ISO 8601 time") from error


def known_fields(row: Any, fields: frozenset[str]) -> None:
    """Raise BadRow where a row has another field than these: a typo must not be lost."""
    if unknown := set(row) - fields:
        raise BadRow(f"unknown field: {_quoted(min(map(str, unknown)))} is none of {', '.join(sorted(fields))}")


def checked_id(row: Mapping[str, Any], name: str) -> str:
    """Return a valid id; whole numbers count as their digits. The reason never quotes the id."""
    given = row.get(name)
    if given is None:
        raise BadRow(f"{name}: missing")
    if type(given) is int:
        given = str(given)
    if not isinstance(given, str):
        raise BadRow(f"{name}: {type(given).__name__} where text is expected")
    if not is_valid_id(given):
        raise BadRow(f"{name}: not a valid id (1 to 128 of A-Z a-z 0-9 . _ : ~ -)")
    return given


def checked_text(row: Mapping[str, Any], name: str, limit: int) -> str:
    """Return a text on one line, "" where there is none. Raises BadRow."""
    given = row.get(name)
    if given is None:
        return ""
    if not isinstance(given, str):
        raise BadRow(f"{name}: {type(given).__name__} where text is expected")
    if len(given) > limit:
        raise BadRow(f"{name}: {len(given)} characters, at most {limit} are taken")
    if any(c < " " and c not in "\t\n\r" for c in given):
        raise BadRow(f"{name}: holds control characters")
    return " ".join(given.split())


def _labels(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, bool):
        return ("true" if value else "false",)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise BadRow(f"attribute {name}: neither text, a list of texts, a number nor a truth value")
    if any(len(v) > _MAX_TITLE for v in values):
        raise BadRow(f"attribute {name}: a value has more than {_MAX_TITLE} characters")
    return tuple(dict.fromkeys(v.strip() for v in values if v.strip()))


def checked_number(value: Any, name: str) -> float:
    """Return a finite number that float32 can hold. Raises BadRow."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"{name}: {type(value).__name__} where a number is expected")
    if not math.isfinite(value) or abs(value) > _FLOAT32_MAX:
        raise BadRow(f"{name}: not a finite number")
    return float(value)


def _quoted(value: Any) -> str:
    """Quote what looks like a name; anything else might be a user id in the wrong column."""
    return repr(value) if isinstance(value, str) and _NAME.fullmatch(value) else "what is given"
