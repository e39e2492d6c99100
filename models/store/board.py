"""The release board: how a publisher and the replicas agree on a new release before the pointer moves to it.

A publisher proposes a release; every replica loads it, and says so; when all that are alive hold it, the pointer moves
and nobody waits for anything. A proposal of a publisher that died runs out by itself. `MemoryBoard` is the shipped
fake, `RedisBoard` speaks to any Redis or Valkey. Times are the server's, so clocks of nodes do not matter.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from models.releases import Release
from models.store.calls import fcall
from models.store.checks import check_tenant
from models.store.redis_store import RedisStore, checked


@dataclass(frozen=True, slots=True)
class Standing:
    """What a replica said of itself last: the releases it holds, and why it would not hold the proposed one."""

    replica: str
    held: tuple[str, ...]
    refused: str | None = None
    """Id of a release it cannot load."""
    reason: str = ""


class ReleaseBoard(Protocol):
    """Proposals and standings per tenant. Errors as in `OnlineStore`."""

    async def propose(self, tenant: str, release: Release, *, publisher: str, ttl_s: float) -> str | None:
        """Propose a release for `ttl_s`; again to stay longer. Returns None, or the id another publisher proposes now.

        The same release is taken over from whoever proposed it: a publisher that died and was started again goes on.
        """
        ...

    async def proposal(self, tenant: str) -> str | None:
        """Return the proposed release as JSON text, None where nothing is proposed."""
        ...

    async def withdraw(self, tenant: str, *, publisher: str) -> None:
        """Take a publisher's own proposal away; somebody else's stays."""
        ...

    async def report(self, tenant: str, standing: Standing) -> None:
        """Say what a replica holds; replaces what it said before."""
        ...

    async def standings(self, tenant: str, *, max_age_s: float) -> list[Standing]:
        """Return what replicas said within `max_age_s`, by name; those that said nothing since are forgotten."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class MemoryBoard:
    """A `ReleaseBoard` in this process's memory."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._proposals: dict[str, tuple[Release, str, float]] = {}
        self._standings: dict[str, dict[str, tuple[Standing, float]]] = {}

    async def propose(self, tenant: str, release: Release, *, publisher: str, ttl_s: float) -> str | None:
        """See `ReleaseBoard.propose`."""
        check_tenant(tenant)
        held = self._proposals.get(tenant)
        if held is not None and held[2] > self._clock():
            other, by, _ = held
            if by != publisher and other.release_id != release.release_id:
                return other.release_id
        self._proposals[tenant] = (release, publisher, self._clock() + ttl_s)
        return None

    async def proposal(self, tenant: str) -> str | None:
        """See `ReleaseBoard.proposal`."""
        held = self._proposals.get(tenant)
        return held[0].to_json() if held is not None and held[2] > self._clock() else None

    async def withdraw(self, tenant: str, *, publisher: str) -> None:
        """See `ReleaseBoard.withdraw`."""
        if tenant in self._proposals and self._proposals[tenant][1] == publisher:
            del self._proposals[tenant]

    async def report(self, tenant: str, standing: Standing) -> None:
        """See `ReleaseBoard.report`."""
        check_tenant(tenant)
        self._standings.setdefault(tenant, {})[standing.replica] = (standing, self._clock())

    async def standings(self, tenant: str, *, max_age_s: float) -> list[Standing]:
        """See `ReleaseBoard.standings`."""
        oldest = self._clock() - max_age_s
        found = {name: s for name, s in self._standings.get(tenant, {}).items() if s[1] >= oldest}
        self._standings[tenant] = found
        return [found[name][0] for name in sorted(found)]

    async def close(self) -> None:
        """See `ReleaseBoard.close`; nothing to close."""


class RedisBoard(RedisStore):
    """A `ReleaseBoard` on a server: one hash for the proposal, one for the standings."""

    def __init__(self, url: str, *, cluster: bool = False, connections: int = 2, write_timeout_s: float = 5.0) -> None:
        super().__init__(url, cluster=cluster, connections=connections, write_timeout_s=write_timeout_s)

    async def propose(self, tenant: str, release: Release, *, publisher: str, ttl_s: float) -> str | None:
        """See `ReleaseBoard.propose`."""
        arguments = [release.to_json(), release.release_id, publisher, max(1, int(ttl_s * 1000))]
        reply = await self._ask(tenant, "proposal", "rc_propose", arguments)
        return None if reply is None else str(reply.decode())

    async def proposal(self, tenant: str) -> str | None:
        """See `ReleaseBoard.proposal`."""
        check_tenant(tenant)
        key = _key(tenant, "proposal")
        async with self._bound(self._write_timeout_s):
            (reply,) = await self._call([(key, ("HGET", key, "text"))])
        text = checked(reply)
        return None if text is None else str(text.decode())

    async def withdraw(self, tenant: str, *, publisher: str) -> None:
        """See `ReleaseBoard.withdraw`."""
        await self._ask(tenant, "proposal", "rc_withdraw", [publisher])

    async def report(self, tenant: str, standing: Standing) -> None:
        """See `ReleaseBoard.report`."""
        body = {"held": standing.held, "refused": standing.refused, "reason": standing.reason}
        await self._ask(tenant, "replicas", "rc_report", [standing.replica, json.dumps(body)])

    async def standings(self, tenant: str, *, max_age_s: float) -> list[Standing]:
        """See `ReleaseBoard.standings`."""
        reply = await self._ask(tenant, "replicas", "rc_standings", [int(max_age_s * 1000)])
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return sorted((_standing(name, body) for name, body in pairs), key=lambda s: s.replica)

    async def _ask(self, tenant: str, part: str, function: str, arguments: list[object]) -> Any:
        check_tenant(tenant)
        key = _key(tenant, part)
        async with self._bound(self._write_timeout_s):
            await self._check_meta()
            (reply,) = await self._call([(key, fcall(function, [key], arguments))])
        return checked(reply)


def _key(tenant: str, part: str) -> str:
    return f"{{{tenant}}}:{part}"


def _standing(name: bytes, body: bytes) -> Standing:
    said = json.loads(body)
    return Standing(name.decode(), tuple(said["held"]), said["refused"], said["reason"])
