"""Live statistics in a replica: the newest published snapshot, mapped onto every release the replica holds.

Called by the retriever and the ingress. Knows nothing of Ray, or of who counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any
from weakref import WeakKeyDictionary

from models.behaviour.snapshot import LiveStatistics, SnapshotInvalid
from models.bundle import ReleaseBundle
from models.store.port import StoreError
from models.store.streams import EventStreams
from serve.releases import ReleaseHolder

log = logging.getLogger("raycommend.live")


class LiveFollower:
    """Follows the snapshots of some tenants. What cannot be read leaves the statistics as they are.

    Attributes:
        unknown_items: by tenant, items with live events that the current release does not have; they wait for one.
    """

    def __init__(self, streams: EventStreams, releases: ReleaseHolder, *, tenants: tuple[str, ...]) -> None:
        self._streams, self._releases, self._tenants = streams, releases, tenants
        self._newest: dict[str, tuple[LiveStatistics, int]] = {}
        self._seen: dict[str, int] = {}
        self._asked_at: dict[str, float] = {}
        self._taken_at: dict[str, float] = {}
        self._applied: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._task: asyncio.Task[None] | None = None
        self.unknown_items: dict[str, int] = {}

    async def start(self, *, poll_s: float) -> None:
        """Map what there is, then go on following."""
        await self.refresh()
        self._task = asyncio.create_task(self._follow(poll_s))

    async def refresh(self) -> None:
        """Look for newer snapshots once, and map them onto releases that lack them."""
        for tenant in self._tenants:
            try:
                await self._read(tenant)
            except StoreError as error:
                log.warning("live statistics could not be read: %s", error)
            except SnapshotInvalid as error:
                log.error("live statistics refused: %s", error)
            if tenant in self._newest:
                await self._map(tenant, *self._newest[tenant])

    async def _read(self, tenant: str) -> None:
        found = await self._streams.read_statistics(tenant, newer_than=self._seen.get(tenant, 0))
        self._asked_at[tenant] = time.monotonic()
        if found is not None:
            body, self._seen[tenant] = found
            live = await asyncio.to_thread(LiveStatistics.from_bytes, body)
            self._newest[tenant] = (live, self._seen[tenant])
            self._taken_at[tenant] = time.monotonic()

    async def _map(self, tenant: str, live: LiveStatistics, version: int) -> None:
        for bundle in self._releases.bundles(tenant):
            if self._applied_to(bundle) != version:
                self.unknown_items[tenant] = await asyncio.to_thread(bundle.go_live, live)
                self._applied[bundle.catalog] = version

    def _applied_to(self, bundle: ReleaseBundle) -> int:
        # By the catalog, which is this bundle's own: bundles compare by value and cannot be keys.
        return self._applied.get(bundle.catalog, 0)

    def state(self) -> dict[str, dict[str, Any]]:
        """Return, by tenant, how long ago the store was asked and a newer snapshot was taken, in s (None: never).

        Where nothing happens no snapshot is published and its age grows; that of the question does not.
        """
        return {
            tenant: {
                "asked_age_s": _age(self._asked_at.get(tenant)),
                "snapshot_age_s": _age(self._taken_at.get(tenant)),
                "unknown_items": self.unknown_items.get(tenant, 0),
            }
            for tenant in self._tenants
        }

    async def stop(self) -> None:
        """Stop following and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._streams.close()

    async def _follow(self, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.refresh()
            except Exception as error:
                # Trending is an addition: whatever is wrong with it, the release goes on being served.
                log.error("live statistics could not be mapped: %s", type(error).__name__)


def _age(since: float | None) -> float | None:
    return None if since is None else round(time.monotonic() - since, 1)
