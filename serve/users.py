"""The user service: takes what users declare, merges a session into a user, and shows what is stored of either.

Ids come in bodies and go nowhere else. Knows nothing of Ray, the web framework or the store; the HTTP edge calls it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from models.catalog import Item, ItemCatalog, document_of
from models.declared import Declaration, Labels
from models.events import EventType
from models.explain.summary_book import SummaryBook
from models.features import UserFeatures
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery
from serve.context import StageCall
from serve.items import ENCODE_MS
from serve.ports import Profiles, QueryEncoder
from serve.releases import ReleaseHolder
from serve.texts import encoded
from serve.user_schemas import LinkRequest, ProfileRequest, UserIn


class UserService:
    """Answers requests about one user. One per ingress replica; safe for concurrent use on its event loop."""

    def __init__(
        self,
        profiles: Profiles,
        releases: ReleaseHolder,
        encoder: QueryEncoder,
        summaries: SummaryBook | None = None,
    ) -> None:
        """`summaries`: where users' interests in words are kept, if they are."""
        self._profiles = profiles
        self._summaries = summaries
        self._releases = releases
        self._encoder = encoder

    async def declare(self, wanted: UserIn, *, tenant: str, request_id: str) -> dict[str, Any]:
        """Replace what a user or session declared; durable when this returns, and harmless to repeat.

        Text becomes a vector here and goes no further. Raises DependencyError while the store or the encoder is away.
        """
        now_ms, labels = time.time_ns() // 1_000_000, wanted.labels()
        release = self._releases.current(tenant)
        bundle = self._releases.bundle(tenant, release)
        vector = None
        if text := _document(labels, wanted.about):
            vector = await encoded(self._encoder, StageCall(tenant, release, ENCODE_MS), text, bundle)
        declaration = Declaration(labels, vector, now_ms, bundle.space.tag)
        await self._profiles.declare(tenant, wanted.user_id, wanted.session_id, declaration, now_ms=now_ms)
        known = await asyncio.to_thread(lambda: sum(bundle.masks.knows(name, value) for name, value in labels))
        return {
            "request_id": request_id,
            "status": "declared" if declaration else "removed",
            "known_labels": known,
            "unknown_labels": len(labels) - known,
        }

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
            "declared": None if user.declared is None else by_name(user.declared.labels),
            "events": _newest_first(user, catalog),
        }


def _document(labels: Labels, about: str | None) -> str:
    """Return what an encoder reads: the same form that it reads of an item."""
    values = {name: tuple(found) for name, found in by_name(labels).items()}
    return document_of(Item("", "", about or "", values))


def by_name(labels: Labels) -> dict[str, list[str]]:
    """Return the values of each attribute, both in the order they were declared."""
    found: dict[str, list[str]] = {}
    for name, value in labels:
        found.setdefault(name, []).append(value)
    return found


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
