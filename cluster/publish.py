"""Publishing from the command line: canary, two-phase swap, and the item log cut behind it.

Opens what the publisher of `pipelines` needs from the settings of one state folder. Called by the commands that make,
publish or take back a release, and by `up` for the first one.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.workspace import Workspace
from models.artifacts import ArtifactError
from models.items.change import Numbered
from models.items.folded import read_folded
from models.items.log import RedisItemLog
from models.releases import Release
from models.store.board import RedisBoard, Standing
from models.store.port import StoreError
from models.store.redis_store import RedisStore
from pipelines.canary import CanaryFailed, check_release
from pipelines.dataset import Dataset
from pipelines.fold import Fold
from pipelines.publish import Patience, Publisher, PublishError, Swap, cut_log
from serve.auth import DEFAULT_TENANT
from serve.deployments.replica import STORE_URL

Found = TypeVar("Found")
_CHANGES_PER_READ = 1000
_NICENESS = 10
"""A tenth of the weight of a process that serves: it goes on where everything is busy, and hardly takes anything."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Connections of one command to the store."""

    store: RedisStore
    board: RedisBoard
    items: RedisItemLog
    publisher: Publisher


def publish(settings: Settings, release: Release, *, tenant: str = DEFAULT_TENANT, check: bool = True) -> Swap:
    """Publish `release`: canary (with `check`), every replica prepares, the pointer moves, the item log is cut.

    Raises OperatorError naming what is wrong; the release before goes on serving then.
    """

    async def run(reach: Reach) -> Swap:
        before, epoch = await reach.publisher.current()
        await reach.items.continue_items(tenant, after=release.item_log_seq)
        if check:
            alive = await reach.board.standings(tenant, max_age_s=Patience().silence_s)
            # A replica that ranks asks its ranker before it says that it holds the release; no torch here.
            asked = functools.partial(canary, settings, release, before, ask_ranker=not alive)
            await asyncio.to_thread(_behind_requests, asked)
        swap = await reach.publisher.swap(release, expected_epoch=epoch)
        await cut_log(reach.items, release, swap, tenant=tenant)
        return swap

    return with_store(settings, run, tenant=tenant)


def _behind_requests(work: Callable[[], Found]) -> Found:
    """Call `work` in this thread, with less priority than what serves on this machine.

    A thread's niceness cannot be taken back, so this is for threads that do nothing else. Numpy's other threads would
    not have it, so the work gets this one alone.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    with threadpool_limits(limits=1):
        return work()


def canary(settings: Settings, release: Release, before: Release | None, *, ask_ranker: bool = True) -> dict[str, Any]:
    """Return the canary's figures (see `check_release`). Raises OperatorError where it must not be published."""
    try:
        return check_release(
            Workspace(settings).artifacts(),
            release,
            before,
            retrieval=settings.models.retrieval,
            encoder=settings.models.encoder.uri,
            dimension=settings.models.encoder.dimension,
            settings=settings.pipelines.canary,
            ask_ranker=ask_ranker,
        )
    except (CanaryFailed, ArtifactError) as error:
        raise OperatorError(f"{release.release_id} is not published: {error}") from error


def current(settings: Settings, *, tenant: str = DEFAULT_TENANT) -> tuple[Release | None, list[Standing]]:
    """Return the release that is served and what the replicas said of late."""

    async def run(reach: Reach) -> tuple[Release | None, list[Standing]]:
        release, _ = await reach.publisher.current()
        return release, await reach.board.standings(tenant, max_age_s=Patience().silence_s)

    return with_store(settings, run, tenant=tenant)


def release_now(settings: Settings, *, reachable: bool, tenant: str = DEFAULT_TENANT) -> Release | None:
    """Return the release that the next one goes on from: the one served, where a store is `reachable`, else the newest.

    After a rollback they differ, and what was taken back must not come again. Only one by the encoder of the settings
    counts: nothing goes on from other vectors.
    """
    workspace = Workspace(settings)
    served = current(settings, tenant=tenant)[0] if reachable else None
    return served if served is not None and workspace.is_ours(served, tenant) else workspace.newest_release(tenant)


def refuse_other_encoder(settings: Settings, *, tenant: str = DEFAULT_TENANT) -> None:
    """Raise OperatorError where the newest release was built by another encoder than that of the settings.

    What goes on from a release would silently serve the encoder before again.
    """
    workspace = Workspace(settings)
    release = workspace.release_to_serve(tenant)
    if release is not None and (uri := workspace.encoder_of(release, tenant)) != settings.models.encoder.uri:
        raise OperatorError(
            f"{release.release_id} was built by the encoder {uri}, and models.encoder.uri is "
            f"{settings.models.encoder.uri}: set that to the one that is to go on, or name it with `reembed --encoder`"
        )


def rollback(settings: Settings, *, to: str | None = None, tenant: str = DEFAULT_TENANT) -> tuple[Release, Swap]:
    """Publish the release that was served before, or `to`, which must still fit the item log; `up` takes it too.

    Raises OperatorError where there is none, or where changes of items since it are no longer in the log.
    """

    async def run(reach: Reach) -> tuple[Release, Swap]:
        now, epoch = await reach.publisher.current()
        name = to or (None if now is None else now.parent)
        book = Workspace(settings).releases(tenant)
        release = None if name is None else book.get(name)
        if release is None:
            raise OperatorError(f"there is no release {name or 'before this one'} to go back to: see `releases list`")
        following = await reach.items.read_items(tenant, after=release.item_log_seq, limit=1)
        if following and following[0][0] > release.item_log_seq + 1:
            raise OperatorError(f"{name}: the item log no longer holds the changes since it; build a release instead")
        swap = await reach.publisher.swap(release, expected_epoch=epoch)
        book.go_back(release)
        return release, swap

    return with_store(settings, run, tenant=tenant)


def folded(settings: Settings, dataset: Dataset, *, reachable: bool, tenant: str = DEFAULT_TENANT) -> Fold:
    """Return what became of the items of `dataset`: what earlier releases folded, and the log where it is reachable."""
    workspace = Workspace(settings)
    before = workspace.releases(tenant).latest()
    fold = Fold()
    if before is not None:
        fold = Fold(before.item_log_seq, read_folded(workspace.artifacts(tenant).get(before.artifacts["catalog"]).path))
    if not reachable:
        return fold  # its store is down; a later build takes the changes in

    return fold.after(_changes(settings, fold.sequence, tenant), dataset)


def waiting_changes(settings: Settings, *, now_ms: int, tenant: str = DEFAULT_TENANT) -> tuple[int, float]:
    """Return how many changes of items the latest release does not know, and the age of the oldest in seconds."""
    before = Workspace(settings).releases(tenant).latest()
    changes = _changes(settings, 0 if before is None else before.item_log_seq, tenant)
    oldest = min((change.time_ms for _, change in changes if change is not None), default=now_ms)
    return len(changes), max(0.0, (now_ms - oldest) / 1000.0)


def _changes(settings: Settings, after: int, tenant: str) -> list[Numbered]:
    """Return the changes of items with a number above `after`."""

    async def run(reach: Reach) -> list[Numbered]:
        changes: list[Numbered] = []
        position = after
        while found := await reach.items.read_items(tenant, after=position, limit=_CHANGES_PER_READ):
            changes += found
            position = found[-1][0]
        return changes

    return with_store(settings, run, tenant=tenant)


def with_store(settings: Settings, work: Callable[[Reach], Awaitable[Found]], *, tenant: str) -> Found:
    """Run `work` with connections to the store. Raises OperatorError when the store is away or a swap is refused."""
    os.environ.update(Workspace(settings).secrets())

    async def run() -> Found:
        url, cluster = os.environ[STORE_URL], settings.cluster.store.cluster
        # For work that is not a request: a busy machine may take its time.
        store = RedisStore(url, cluster=cluster, write_timeout_s=10.0, connect_timeout_s=5.0)
        board, items = RedisBoard(url, cluster=cluster), RedisItemLog(url, cluster=cluster)
        try:
            return await work(Reach(store, board, items, Publisher(store, board, tenant=tenant)))
        except StoreError as error:
            raise OperatorError(f"the store cannot be used: {error}; is `raycommend up` running?") from error
        except PublishError as error:
            raise OperatorError(str(error)) from error
        finally:
            await asyncio.gather(store.close(), board.close(), items.close())

    return asyncio.run(run())
