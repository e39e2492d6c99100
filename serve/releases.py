"""The releases a replica holds: the current one and the one before, loaded in the background.

Every replica follows the release pointer of its tenants. A request is pinned to a release by the ingress; a
replica that lacks it raises ReleaseMissing. Loading never happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from models.store.port import OnlineStore, StoreError
from serve.errors import DependencyError, ReleaseMissing
from serve.live_items import ItemFollower

log = logging.getLogger("raycommend.releases")
KEPT = 2
Warm = Callable[[ReleaseBundle], object]


class ReleaseHolder:
    """Holds bundles by (tenant, release id). `warm` touches what this kind of replica needs before it is served."""

    def __init__(
        self,
        store: OnlineStore,
        artifacts: Callable[[str], ArtifactStore],
        *,
        tenants: tuple[str, ...],
        settings: RetrievalSettings,
        warm: Warm,
        items: ItemFollower | None = None,
    ) -> None:
        """`artifacts(tenant)` opens the artifact store of a tenant; `items` keeps releases up to the item log."""
        self._store = store
        self._artifacts = artifacts
        self._tenants = tenants
        self._settings = settings
        self._warm = warm
        self._items = items
        self._catching_up = asyncio.Lock()
        self._held: dict[str, dict[str, ReleaseBundle]] = {t: {} for t in tenants}
        self._epoch: dict[str, int] = dict.fromkeys(tenants, 0)
        self._current: dict[str, str] = {}
        self._refused: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, poll_s: float, wait_s: float, item_poll_s: float = 0.1) -> None:
        """Load the current release of every tenant, with the newest items, then follow the pointer and the item log.

        A store that is away for a moment is asked again. Raises DependencyError after `wait_s`, and what `load_bundle`
        raises when the first release is damaged.
        """
        missing = nothing = "no release is published; run `raycommend build`"
        try:
            async with asyncio.timeout(wait_s):
                while True:
                    try:
                        if await self.refresh(strict=True):
                            break
                        missing = nothing
                    except StoreError as error:
                        missing = f"the release pointer could not be read: {error}"
                    # Another process publishes, so there is no event to wait for.
                    await asyncio.sleep(min(0.2, poll_s))
        except TimeoutError as error:
            raise DependencyError(missing) from error
        self._tasks.append(asyncio.create_task(self._follow(poll_s, self.refresh)))
        if self._items is not None:
            self._tasks.append(asyncio.create_task(self._follow(item_poll_s, self.catch_up)))

    async def refresh(self, *, strict: bool = False) -> bool:
        """Look at the pointers once; return whether every tenant has a release here.

        A release that cannot be loaded is refused and the old one goes on serving; with `strict` it is raised.
        """
        for tenant in self._tenants:
            text, epoch = await self._store.read_release(tenant)
            if text is None or epoch in (self._epoch[tenant], self._refused.get(tenant)):
                continue
            try:
                bundle = await asyncio.get_running_loop().run_in_executor(None, self._load, tenant, text)
                if self._items is not None:
                    bundle = await self._items.caught_up(tenant, bundle)
            except StoreError:
                raise
            except OSError as error:
                if strict:
                    raise
                log.warning("release of epoch %d could not be pulled, trying again: %s", epoch, error)
                continue
            except Exception as error:
                # Whatever is wrong with a new release (native readers raise anything), the old one goes on serving.
                if strict:
                    raise
                # The epoch is remembered, so that the log says it once.
                log.error("release of epoch %d refused: %s: %s", epoch, type(error).__name__, error)
                self._refused[tenant] = epoch
                continue
            self._hold(tenant, bundle, epoch)
        return all(t in self._current for t in self._tenants)

    async def catch_up(self) -> None:
        """Apply what the item log holds by now to every release held. Raises StoreError when it cannot be read."""
        if self._items is None:
            return
        async with self._catching_up:
            for tenant, held in self._held.items():
                for release_id, bundle in list(held.items()):
                    found = await self._items.caught_up(tenant, bundle)
                    if found is not bundle and held.get(release_id) is bundle:
                        held[release_id] = found

    def bundle(self, tenant: str, release_id: str) -> ReleaseBundle:
        """Return a held release. Raises ReleaseMissing."""
        try:
            return self._held[tenant][release_id]
        except KeyError as error:
            raise ReleaseMissing("the pinned release is not loaded here") from error

    def bundles(self, tenant: str) -> list[ReleaseBundle]:
        """Return the tenant's releases that are loaded, oldest first."""
        return list(self._held[tenant].values())

    def current(self, tenant: str) -> str:
        """Return the id of the tenant's current release. Raises ReleaseMissing before the first."""
        try:
            return self._current[tenant]
        except KeyError as error:
            raise ReleaseMissing("no release is loaded for this tenant") from error

    def held(self, tenant: str) -> tuple[str, ...]:
        """Return the ids of the releases held, the current one first. Raises ReleaseMissing before the first."""
        current = self.current(tenant)
        return (current, *(r for r in reversed(self._held[tenant]) if r != current))

    async def stop(self) -> None:
        """Stop following."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._items is not None:
            await self._items.close()

    def _load(self, tenant: str, text: str) -> ReleaseBundle:
        bundle = load_bundle(self._artifacts(tenant), Release.from_json(text), settings=self._settings)
        self._warm(bundle)
        return bundle

    def _hold(self, tenant: str, bundle: ReleaseBundle, epoch: int) -> None:
        held = self._held[tenant]
        held.pop(bundle.release_id, None)
        held[bundle.release_id] = bundle
        while len(held) > KEPT:
            del held[next(iter(held))]
        self._current[tenant] = bundle.release_id
        self._epoch[tenant] = epoch
        log.info("serving release %s (epoch %d)", bundle.release_id, epoch)

    async def _follow(self, poll_s: float, look: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(poll_s)
            try:
                await look()
            except Exception as error:
                # Whatever it is: a replica that stops looking would serve an old release for ever, and say nothing.
                log.warning("%s failed (%s); serving what is loaded", look.__name__, type(error).__name__)
