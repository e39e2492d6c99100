"""The two-phase swap: every replica loads a release and says so, then the pointer moves, all at once or not at all.

Until the pointer moves the release before it serves, so a publisher may die at any point: its proposal runs out, and
the next run goes on. Called by the commands that publish; knows nothing of how a release was made.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from models.items.log import ItemLog
from models.releases import Release
from models.store.board import ReleaseBoard, Standing
from models.store.port import OnlineStore


class PublishError(Exception):
    """A release was not published; the message says why and what serves instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a swap waits, in seconds."""

    replicas_s: float = 120.0
    """Until every replica holds the release."""
    silence_s: float = 5.0
    """A replica that said nothing for so long is gone and not waited for; well above `serve.release_poll_s`."""
    proposal_s: float = 15.0
    """How long a proposal outlives its publisher."""
    poll_s: float = 0.2
    """How often the replicas are looked at."""


@dataclass(frozen=True, slots=True)
class Swap:
    """What a publication came to."""

    epoch: int
    before: Release | None
    """What was served before; None for a first release."""
    replicas: int
    """Replicas that held the release when the pointer moved."""
    moved: bool
    """False where the release was current already."""


class Publisher:
    """Moves the release pointer of a tenant."""

    def __init__(
        self,
        store: OnlineStore,
        board: ReleaseBoard,
        *,
        tenant: str,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store, self._board, self._tenant = store, board, tenant
        self._patience = patience or Patience()
        self._clock, self._sleep = clock, sleep
        self._name = uuid.uuid4().hex[:12]

    async def current(self) -> tuple[Release | None, int]:
        """Return what is served and its epoch. Raises PublishError when the pointer cannot be read."""
        text, epoch = await self._store.read_release(self._tenant)
        try:
            return (None if text is None else Release.from_json(text)), epoch
        except ValueError:
            return None, epoch  # a damaged pointer serves nothing new; whoever publishes next puts it right

    async def swap(self, release: Release, *, expected_epoch: int | None = None) -> Swap:
        """Publish `release`.

        Its parent becomes what it replaces, so that a rollback finds it. Raises PublishError when another publisher is
        at work or was faster than `expected_epoch`, when a replica refuses, or when one stays silent about it.
        """
        before, epoch = await self.current()
        if expected_epoch is not None and epoch != expected_epoch:
            raise PublishError(_OVERTAKEN.format(now=_name(before)))
        if before is not None and before.release_id == release.release_id:
            return Swap(epoch, before, 0, moved=False)
        wanted = replace(release, parent=None if before is None else before.release_id)
        try:
            replicas = await self._prepared(wanted)
            if not await self._store.move_release(self._tenant, wanted.to_json(), expected_epoch=epoch):
                now, epoch = await self.current()
                if now is not None and now.release_id == wanted.release_id:
                    return Swap(epoch, before, replicas, moved=False)
                raise PublishError(_OVERTAKEN.format(now=_name(now)))
        finally:
            await self._board.withdraw(self._tenant, publisher=self._name)
        return Swap(epoch + 1, before, replicas, moved=True)

    async def _prepared(self, release: Release) -> int:
        """Wait until every replica that is alive holds `release`; return how many those are."""
        patience, started = self._patience, self._clock()
        while True:
            other = await self._board.propose(self._tenant, release, publisher=self._name, ttl_s=patience.proposal_s)
            if other is not None:
                raise PublishError(f"{other} is being published right now; run this again when that is done")
            standings = await self._board.standings(self._tenant, max_age_s=patience.silence_s)
            refused = [s for s in standings if s.refused == release.release_id]
            if refused:
                one = refused[0]
                raise PublishError(
                    f"{len(refused)} of {len(standings)} replicas refused {release.release_id}: replica {one.replica}: "
                    f"{one.reason}; the release before it goes on serving"
                )
            missing = [s for s in standings if release.release_id not in s.held]
            if not missing:
                return len(standings)
            if self._clock() - started > patience.replicas_s:
                raise PublishError(_late(release, missing, standings, patience.replicas_s))
            await self._sleep(patience.poll_s)


_OVERTAKEN = "another publisher moved the release to {now} meanwhile; nothing was changed, run this again"


async def cut_log(items: ItemLog, release: Release, swap: Swap, *, tenant: str) -> None:
    """Drop the changes that both the new release and the one before know: nobody goes back further than that."""
    if swap.before is not None:
        await items.trim_items(tenant, up_to=min(swap.before.item_log_seq, release.item_log_seq))


def _name(release: Release | None) -> str:
    return "nothing" if release is None else release.release_id


def _late(release: Release, missing: list[Standing], standings: list[Standing], after_s: float) -> str:
    names = ", ".join(s.replica for s in missing)
    return (
        f"{len(missing)} of {len(standings)} replicas do not hold {release.release_id} after {after_s:g} s ({names}); "
        "the release before it goes on serving"
    )
