"""The releases a replica holds: the current one and the one before, loaded in the background.

Every replica follows the release pointer of its tenants. A request is pinned to a release by the ingress; a
replica that lacks it raises ReleaseMissing. Loading never happens on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from models.store.port import OnlineStore, StoreError
from serve.errors import DependencyError, ReleaseMissing

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
    ) -> None:
        """`artifacts(tenant)` opens the artifact store of a tenant."""
        self._store = store
        self._artifacts = artifacts
        self._tenants = tenants
        self._settings = settings
        self._warm = warm
        self._held: dict[str, dict[str, ReleaseBundle]] = {t: {} for t in tenants}
        self._epoch: dict[str, int] = dict.fromkeys(tenants, 0)
        self._current: dict[str, str] = {}
        self._refused: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self, *, poll_s: float, wait_s: float) -> None:
        """Load the current release of every tenant, then follow the pointer.

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
        self._task = asyncio.create_task(self._follow(poll_s))

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
        """Stop following the pointer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

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

    async def _follow(self, poll_s: float) -> None:
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.refresh()
            except Exception as error:
                # Whatever it is: a replica that stops looking would serve an old release for ever, and say nothing.
                log.warning("the release pointer could not be read (%s); serving what is loaded", type(error).__name__)
