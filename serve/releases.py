"""The releases a replica holds: the current one and the one before, loaded in the background.

Every replica follows the release pointer of its tenants, and loads a proposed release before the pointer moves to it.
A request is pinned to a release by the ingress; a replica that lacks it raises ReleaseMissing. Loading never happens on
the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.hosted import Spread
from models.hub import HubError
from models.rankers.settings import RankerSettings
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from models.store.board import ReleaseBoard, Standing
from models.store.port import OnlineStore, StoreError
from models.text_space import EncoderShelf
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
        board: ReleaseBoard | None = None,
        encoder: str | None = None,
        encoders: EncoderShelf | None = None,
        ranking: RankerSettings | None = None,
        spread: Spread | None = None,
    ) -> None:
        """`artifacts(tenant)` opens the artifact store of a tenant; `items` keeps releases up to the item log.

        On the `board` this replica finds proposed releases and says what it holds; None waits for the pointer alone.
        `encoder` is the URI of what made vectors that do not say it. `encoders` is where releases have theirs from, in
        a replica that embeds. `ranking` says how rankers are computed here, `spread` how the vector index is spread
        over processes.
        """
        self._store = store
        self._artifacts = artifacts
        self._tenants = tenants
        self._settings = settings
        self._warm = warm
        self._items = items
        self._board = board
        self._how: dict[str, Any] = {"encoder": encoder, "encoders": encoders, "ranking": ranking, "spread": spread}
        self._replica = uuid.uuid4().hex[:12]
        self._prepared: dict[str, ReleaseBundle] = {}
        self._doubts: dict[str, tuple[str, str]] = {}  # by tenant: a proposed release that was not loaded, and why
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
        if self._board is not None:
            self._tasks.append(asyncio.create_task(self._follow(poll_s, self.prepare)))
            self._tasks.append(asyncio.create_task(self._follow(poll_s, self.report)))

    async def prepare(self) -> None:
        """Load what is proposed, so that it is here when the pointer moves to it; forget what no longer is."""
        for tenant in self._tenants if self._board is not None else ():
            text = await self._board.proposal(tenant)  # type: ignore[union-attr]
            if text is None:
                if tenant in self._prepared:
                    # Withdrawn after the pointer moved to it, perhaps: then it is held, and not loaded again.
                    await self.refresh()
                self._prepared.pop(tenant, None)
                self._doubts.pop(tenant, None)
                continue
            # The name that was proposed, and not that of a document we could not read.
            name = name_of(text)
            ready = self._prepared.get(tenant)
            if name in self._held[tenant] or (ready is not None and ready.release_id == name):
                continue
            try:
                bundle = await self._loaded(tenant, text)
            except StoreError:
                raise
            except Exception as error:
                # Whatever is wrong with it, the publisher is told, and what is held goes on serving.
                log.error("proposed release %s refused: %s: %s", name, type(error).__name__, error)
                self._doubts[tenant] = (name, f"{type(error).__name__}: {error}")
            else:
                self._doubts.pop(tenant, None)
                self._prepared[tenant] = bundle
            await self.report()

    async def report(self) -> None:
        """Say on the board what this replica holds; called at every poll, because silence counts as gone."""
        for tenant in self._tenants if self._board is not None else ():
            ready = self._prepared.get(tenant)
            held = (*self._held[tenant], *(() if ready is None else (ready.release_id,)))
            refused, reason = self._doubts.get(tenant, (None, ""))
            await self._board.report(tenant, Standing(self._replica, held, refused, reason[:500]))  # type: ignore[union-attr]

    async def refresh(self, *, strict: bool = False) -> bool:
        """Look at the pointers once; return whether every tenant has a release here.

        A release that cannot be loaded is refused and the old one goes on serving; with `strict` it is raised.
        """
        for tenant in self._tenants:
            text, epoch = await self._store.read_release(tenant)
            if text is None or epoch in (self._epoch[tenant], self._refused.get(tenant)):
                continue
            try:
                bundle = await self._loaded(tenant, text)
            except StoreError:
                raise
            except (OSError, HubError) as error:
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

    def ready(self, tenant: str, release_id: str) -> ReleaseBundle:
        """Return a release that is held or prepared: others may see the pointer move first. Raises ReleaseMissing."""
        prepared = self._prepared.get(tenant)
        if prepared is not None and prepared.release_id == release_id:
            return prepared
        return self.bundle(tenant, release_id)

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
        if self._board is not None:
            await self._board.close()

    async def _loaded(self, tenant: str, text: str) -> ReleaseBundle:
        """Return the bundle of a release document with the newest items: the one that is here, or a new one."""
        name = name_of(text)
        ready = self._prepared.get(tenant)
        bundle = ready if ready is not None and ready.release_id == name else self._held[tenant].get(name)
        if bundle is None:
            bundle = await asyncio.get_running_loop().run_in_executor(None, self._load, tenant, text)
        return bundle if self._items is None else await self._items.caught_up(tenant, bundle)

    def _load(self, tenant: str, text: str) -> ReleaseBundle:
        release = Release.from_json(text)
        bundle = load_bundle(self._artifacts(tenant), release, settings=self._settings, **self._how)
        self._warm(bundle)
        return bundle

    def _hold(self, tenant: str, bundle: ReleaseBundle, epoch: int) -> None:
        held = self._held[tenant]
        held.pop(bundle.release_id, None)
        held[bundle.release_id] = bundle
        self._prepared.pop(tenant, None)
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


def name_of(text: str) -> str:
    """Return the id of a release document, or what stands for it in messages where it cannot be read."""
    try:
        return Release.from_json(text).release_id
    except ValueError:
        return "unreadable"
