"""The user service: merges a session into a user, and shows what is stored of either.

Ids come in bodies and go nowhere else. Knows nothing of Ray, the web framework or the store; the HTTP edge calls it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from models.catalog import ItemCatalog
from models.events import EventType
from models.explain.summary_book import SummaryBook
from models.features import UserFeatures
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery
from serve.ports import Profiles
from serve.releases import ReleaseHolder
from serve.schemas import LinkRequest, ProfileRequest


class UserService:
    """Answers requests about one user. One per ingress replica; safe for concurrent use on its event loop."""

    def __init__(self, profiles: Profiles, releases: ReleaseHolder, summaries: SummaryBook | None = None) -> None:
        """`summaries`: where users' interests in words are kept, if they are."""
        self._profiles = profiles
        self._summaries = summaries
        self._releases = releases

    async def link(self, wanted: LinkRequest, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Merge a session into a user; durable when this returns, and harmless to repeat. Raises DependencyError."""
        now_ms = time.time_ns() // 1_000_000
        done = await self._profiles.link(tenant, wanted.user_id, wanted.session_id, now_ms=now_ms)
        return {"request_id": request_id, "session_known": done.known, "events": done.events}

    async def profile(self, wanted: ProfileRequest, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Return what is stored of a user or session, readable with the titles of the current release.

        A stranger is not an error: `known` is False. Raises DependencyError while the store is away.
        """
        release = self._releases.current(tenant)
        catalog = self._releases.bundle(tenant, release).catalog
        user = await self._profiles.read(tenant, wanted.user_id, wanted.session_id)
        if self._summaries is not None and wanted.user_id is not None:
            user = replace(user, summary=await self._summaries.read(tenant, wanted.user_id))
        now_ms = time.time_ns() // 1_000_000
        query = RetrievalQuery(n=0, now_ms=now_ms, user=user)
        return {
            "request_id": request_id,
            "release": release,
            "known": user.known,
            "summary": profile_text(query, catalog),
            "seen_items": len(user.seen),
            # That there is a search and how old it is; its vector says more than a reader could judge.
            "search_age_ms": None if user.intent is None else max(0, now_ms - user.intent_ms),
            "events": _newest_first(user, catalog),
        }


def _newest_first(user: UserFeatures, catalog: ItemCatalog) -> list[dict[str, Any]]:
    rows = catalog.rows(user.item_ids)
    return [
        {
            "item_id": user.item_ids[at],
            "title": catalog.title(int(rows[at])) if rows[at] >= 0 else None,
            "type": EventType(int(user.types[at])).name,
            "value": round(float(user.values[at]), 6),
            "timestamp_ms": int(user.timestamps_ms[at]),
        }
        for at in range(len(user) - 1, -1, -1)
    ]
