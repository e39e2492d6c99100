"""OpenAPI for routes that parse their own bodies: the schemas come from the contract's types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.parameters import item_parameter

_REF = "#/components/schemas/{model}"


def body_of(model: type[BaseModel], *, or_list: bool = False) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose body is `model` (or a list of it)."""
    ref: dict[str, Any] = {"$ref": _REF.format(model=model.__name__)}
    schema = {"oneOf": [ref, {"type": "array", "items": ref}]} if or_list else ref
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def item_body(model: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the `openapi_extra` of a route about one item of the path, with a body where a model is given."""
    return {"parameters": item_parameter(), **(body_of(model) if model else {})}


def describe(app: FastAPI, bodies: Sequence[type[BaseModel]]) -> None:
    """Add the schemas of `bodies` to the document that `app` serves."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        _, extra = models_json_schema([(m, "validation") for m in bodies], ref_template=_REF)
        document["components"]["schemas"].update(extra["$defs"])
        return document

    app.openapi = openapi  # type: ignore[method-assign]
