"""Bodies of requests: JSON into the contract's types, and what is wrong with them by name, never by value.

Called by the HTTP edge. Knows nothing of routes or services.
"""

from __future__ import annotations

import re
from typing import TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from models.ids import is_valid_id
from serve.errors import ClientError, InvalidRequest
from serve.schemas import MAX_EVENTS, EventIn, EventResult

Schema = TypeVar("Schema", bound=BaseModel)
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}\Z")


class MalformedBody(ClientError):
    """The body is not JSON."""


def parse_body(schema: type[Schema], body: bytes) -> Schema:
    """Return the body as `schema`. Raises MalformedBody or InvalidRequest."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        if any(e["type"] == "json_invalid" for e in error.errors(include_input=False, include_url=False)):
            raise MalformedBody("the body is not valid JSON") from error
        raise InvalidRequest(explain(error)) from error


def explain(error: ValidationError) -> str:
    """Name every problem by field, without repeating what was sent: names of fields, never values."""
    found = error.errors(include_input=False, include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(_named(p) for p in e['loc']) or 'body'}: {e['msg']}" for e in found[:20])


def _named(part: str | int) -> str:
    """Return a part of a field's place; a key that does not look like a field's name is not repeated."""
    return str(part) if isinstance(part, int) or _FIELD.match(part) else "?"


def parse_events(body: bytes) -> tuple[list[EventIn], list[EventResult | None]]:
    """Return the valid events and, per event sent, None for a valid one or the result that says what is wrong."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody("the body is not valid JSON") from error
    if isinstance(data, dict):
        try:
            return [EventIn.model_validate(data)], [None]
        except ValidationError as error:
            raise InvalidRequest(explain(error)) from error
    if not isinstance(data, list) or not 1 <= len(data) <= MAX_EVENTS:
        raise InvalidRequest(f"send one event or a list of 1 to {MAX_EVENTS}")
    parsed: list[EventIn] = []
    results: list[EventResult | None] = []
    for one in data:
        try:
            parsed.append(EventIn.model_validate(one))
            results.append(None)
        except ValidationError as error:
            event_id = one.get("event_id") if isinstance(one, dict) else None
            known = event_id if isinstance(event_id, str) and is_valid_id(event_id) else None
            results.append(EventResult(event_id=known, status="invalid", reason=explain(error)))
    return parsed, results
