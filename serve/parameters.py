"""Query strings of the list routes: `k`, and attributes of the catalog (`genres=Comedy&genres=Drama`: any of them).

What is wrong is told by name, never by value. Called by the HTTP edge; knows nothing of catalogs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from serve.errors import InvalidRequest
from serve.schemas import MAX_K, ListQuery

_K = re.compile(r"[0-9]{1,3}\Z")


def list_query(parameters: Iterable[tuple[str, str]]) -> ListQuery:
    """Return what a query string asks for; a name that comes twice means any of its values.

    Raises InvalidRequest for a `k` that is no number or comes twice, and pydantic's ValidationError for the rest.
    """
    values: dict[str, list[str]] = {}
    for name, value in parameters:
        values.setdefault(name, []).append(value)
    k = values.pop("k", ["10"])
    if len(k) != 1 or not _K.match(k[0]):
        raise InvalidRequest(f"k: give it once, as a number from 1 to {MAX_K}")
    return ListQuery(k=int(k[0]), filters=values)


def list_parameters(*, item: bool = False) -> dict[str, object]:
    """Return the `openapi_extra` of a list route; with `item`, of one that has an item id in its path."""
    k = {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10}
    attributes = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}
    parameters: list[dict[str, object]] = [
        {"name": "k", "in": "query", "required": False, "schema": k, "description": "How many items are wanted."},
        {
            "name": "attributes",
            "in": "query",
            "required": False,
            "schema": attributes,
            "style": "form",
            "explode": True,
            "description": "Attributes of the catalog, such as `genres=Comedy&genres=Drama`: any of the values.",
        },
    ]
    return {"parameters": [*item_parameter(), *parameters] if item else parameters}


def decision_parameters() -> list[dict[str, object]]:
    """Return the description of a decision id in the path and of how long its reasons may take."""
    number = {"type": "integer", "minimum": 0, "maximum": 120_000}
    return [
        {"name": "decision_id", "in": "path", "required": True, "schema": {"type": "string"}},
        {"name": "reasons_deadline_ms", "in": "query", "required": False, "schema": number},
    ]


def item_parameter() -> list[dict[str, object]]:
    """Return the description of an item id in the path."""
    return [{"name": "item_id", "in": "path", "required": True, "schema": {"type": "string"}}]
