"""Readiness: the state of each dependency, for `GET /readyz`.

Only the store and the releases decide whether a replica is ready. Without live statistics or language model there are
full answers too, so those are told and nothing more. Knows nothing of Ray or the web framework; the HTTP edge calls it.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from models.store.port import OnlineStore, StoreError
from serve.errors import RecommendError, ReleaseMissing
from serve.live import LiveFollower
from serve.ports import Explainer
from serve.releases import ReleaseHolder

EXPLAINER_TIMEOUT_S = 0.2


class Readiness:
    """Asks the dependencies of one ingress replica."""

    def __init__(
        self,
        store: OnlineStore,
        releases: ReleaseHolder,
        explainer: Explainer,
        *,
        tenants: tuple[str, ...],
        live: LiveFollower | None = None,
    ) -> None:
        """`live` is None where nobody counts events live."""
        self._store, self._releases, self._explainer = store, releases, explainer
        self._tenants, self._live = tenants, live
        self._explainer_said: tuple[str, float] | None = None

    async def state(self) -> dict[str, Any]:
        """Return `ready` and, by dependency, its state; bounded by the store's own time-out. Never raises."""
        store, explainer = await asyncio.gather(self._store_state(), self._explainer_state())
        releases = {tenant: self._release(tenant) for tenant in self._tenants}
        return {
            "ready": store == "ok" and None not in releases.values(),
            "store": store,
            "releases": releases,
            "statistics": None if self._live is None else self._live.state(),
            "explainer": explainer,
        }

    async def _store_state(self) -> str:
        try:
            await self._store.ping()
        except StoreError:
            return "unavailable"
        return "ok"

    def _release(self, tenant: str) -> str | None:
        try:
            return self._releases.current(tenant)
        except ReleaseMissing:
            return None

    async def _explainer_state(self) -> dict[str, Any]:
        """Return what the explainer says, or what it said last, with the age of that: it may be busy, or gone."""
        try:
            async with asyncio.timeout(EXPLAINER_TIMEOUT_S):
                healthy = await self._explainer.healthy()
            self._explainer_said = ("ok" if healthy else "unavailable", time.monotonic())
        except TimeoutError:
            pass
        except RecommendError:
            self._explainer_said = ("unavailable", time.monotonic())
        if self._explainer_said is None:
            return {"state": "unknown", "age_s": None}
        state, since = self._explainer_said
        return {"state": state, "age_s": round(time.monotonic() - since, 1)}
