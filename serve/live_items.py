"""Keeps the releases of a replica up to date with the item log.

Every replica folds the same changes in the same order over the same release, so a row means the same item everywhere.
A replica that is ahead or behind for a moment is allowed for: rows that another does not know are dropped there.
Called by the replicas of the ingress, the retriever and the ranker, and by the item service. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from models.bundle import ReleaseBundle
from models.items.log import ItemLog

log = logging.getLogger("raycommend.items")
CHANGES_PER_READ = 1000
Warm = Callable[[ReleaseBundle], object]


class ItemFollower:
    """Applies new changes to bundles. `warm` touches what this kind of replica needs before a bundle is served."""

    def __init__(self, items: ItemLog, *, warm: Warm) -> None:
        self._items = items
        self._warm = warm

    async def caught_up(self, tenant: str, bundle: ReleaseBundle) -> ReleaseBundle:
        """Return `bundle` with every change that the log holds by now (the same object where there is none).

        Raises StoreError when the log cannot be read.
        """
        found = bundle
        while changes := await self._items.read_items(tenant, after=found.item_sequence, limit=CHANGES_PER_READ):
            unread = sum(change is None for _, change in changes)
            if unread:
                log.error("%d changes of the item log are of another version and were passed over", unread)
            found = await asyncio.to_thread(found.with_changes, changes)
        if found is not bundle:
            await asyncio.to_thread(self._warm, found)
        return found

    async def close(self) -> None:
        """Close the connections to the log."""
        await self._items.close()
