"""The item service: adds, changes and removes items while a release is served.

A change is embedded, appended to the item log and acknowledged when it is durable; this replica knows it when the
answer leaves, the others a poll later. Knows nothing of Ray or the web framework; the HTTP edge calls it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.catalog import MODALITIES, REVIEWED, Item, document_of
from models.items.change import ItemChange, Operation, new_item, patched
from models.items.log import ItemLog, ItemLogFull
from models.store.port import StoreError
from serve.context import StageCall
from serve.errors import DependencyError, InvalidRequest, NotFound, OverloadError
from serve.ports import QueryEncoder
from serve.releases import ReleaseHolder
from serve.schemas import AttributesIn, ItemIn, ItemPatch
from serve.texts import encoded

ENCODE_MS = 5_000.0
"""Time that embedding one item may take: nobody waits for a list meanwhile."""


class ItemService:
    """Answers changes of items. One per ingress replica; safe for concurrent use on its event loop."""

    def __init__(self, log: ItemLog, encoder: QueryEncoder, releases: ReleaseHolder) -> None:
        self._log = log
        self._encoder = encoder
        self._releases = releases

    async def put(self, item_id: str, wanted: ItemIn, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Add an item, or replace it whole.

        Raises InvalidRequest for an attribute of the wrong kind, DependencyError while store or encoder are away, and
        OverloadError while the log is full.
        """
        bundle = await self._newest(tenant)
        change = _change("put", item_id, wanted, bundle)
        row = bundle.catalog.row(item_id)
        created = row is None or bundle.removed(row)
        vector = await self._vector(new_item(change).item, tenant, bundle)
        change = replace(change, vector=vector, tag=bundle.space.tag)
        return await self._append(change, tenant, request_id, "created" if created else "replaced")

    async def patch(self, item_id: str, wanted: ItemPatch, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Change some fields of an item. Raises NotFound for one nobody knows, else as `put`."""
        bundle = await self._newest(tenant)
        before = _known(bundle, item_id)
        change = _change("patch", item_id, wanted, bundle)
        after = patched(before, change)
        if document_of(after) != document_of(before):
            vector = await self._vector(after, tenant, bundle)
            change = replace(change, vector=vector, tag=bundle.space.tag)
        return await self._append(change, tenant, request_id, "changed")

    async def remove(self, item_id: str, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Take an item out for good; its events stay. Raises NotFound for one nobody knows, else as `put`."""
        bundle = await self._newest(tenant)
        _known(bundle, item_id)
        change = ItemChange("remove", item_id, _now_ms())
        return await self._append(change, tenant, request_id, "removed")

    async def _newest(self, tenant: str) -> ReleaseBundle:
        """Return the current release with every change that is durable by now, whichever replica took it."""
        try:
            await self._releases.catch_up()
        except StoreError as error:
            raise DependencyError("the item log could not be read; send the change again") from error
        return self._releases.bundle(tenant, self._releases.current(tenant))

    async def _vector(self, item: Item, tenant: str, bundle: ReleaseBundle) -> npt.NDArray[np.float32]:
        call = StageCall(tenant, bundle.release_id, ENCODE_MS)
        return await encoded(self._encoder, call, document_of(item), bundle)

    async def _append(self, change: ItemChange, tenant: str, request_id: str, status: str) -> dict[str, Any]:
        try:
            sequence = await self._log.append_item(tenant, change)
            await self._releases.catch_up()
        except ItemLogFull as error:
            raise OverloadError(str(error), retry_after_s=60.0) from error
        except StoreError as error:
            raise DependencyError("the change could not be made durable; send it again") from error
        return {"request_id": request_id, "item_id": change.item_id, "status": status, "sequence": sequence}


def _change(operation: Operation, item_id: str, wanted: ItemIn | ItemPatch, bundle: ReleaseBundle) -> ItemChange:
    """Return a change as the log holds it, still without a vector. Raises InvalidRequest as `_attributes` does."""
    return ItemChange(
        operation,
        item_id,
        _now_ms(),
        wanted.title,
        wanted.text,
        _attributes(wanted.attributes, bundle),
        wanted.hidden,
        wanted.available,
        media=_media(operation, wanted),
    )


def _media(operation: Operation, wanted: ItemIn | ItemPatch) -> dict[str, str]:
    """Return the pictures and sounds of a change; only a patch can say that one goes."""
    given = {name: getattr(wanted, name) for name in MODALITIES}
    return {name: where for name, where in given.items() if where or (where is not None and operation == "patch")}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _known(bundle: ReleaseBundle, item_id: str) -> Item:
    row = bundle.catalog.row(item_id)
    if row is None or bundle.removed(row):
        raise NotFound("there is no item of this id")
    return bundle.catalog.item(row)


def _attributes(given: AttributesIn, bundle: ReleaseBundle) -> dict[str, tuple[str, ...] | float | None]:
    """Return attributes as the log holds them. Raises InvalidRequest where the catalog has one of the other kind."""
    catalog = bundle.catalog
    kinds: Mapping[str, str] = {
        **dict.fromkeys(catalog.label_names, "a text or a list of texts"),
        **dict.fromkeys(catalog.number_names, "a number"),
    }
    found: dict[str, tuple[str, ...] | float | None] = {}
    for name, value in given.items():
        number = isinstance(value, int | float)
        kind = "a number" if number else "a text or a list of texts"
        if value is not None and name in REVIEWED.values():
            raise InvalidRequest(f"attributes.{name}: only what reviews say has this name")
        if value is not None and kinds.get(name, kind) != kind:
            raise InvalidRequest(f"attributes.{name}: the catalog has {kinds[name]} there")
        if value is None:
            found[name] = None
        elif isinstance(value, int | float):
            found[name] = float(value)
        else:
            values = [value] if isinstance(value, str) else value
            found[name] = tuple(dict.fromkeys(v.strip() for v in values if v.strip()))
    return found
