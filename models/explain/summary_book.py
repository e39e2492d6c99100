"""Users' interests in words, kept in the cache store for a while: written by a batch job, read beside the features.

Keys hold a digest and no user id. What the store holds is believed only as far as it is plain, harmless text. Whoever
reads goes on without it: a store that is away, slow or empty gives "". Knows nothing of how summaries are written.
"""

from __future__ import annotations

import hashlib

from models.explain.clean import clean_text, is_quotable
from models.store.cache_store import CacheStore
from models.store.port import StoreError

MAX_CHARS = 480


class SummaryBook:
    """Summaries by tenant and user id. For one event loop."""

    def __init__(self, store: CacheStore, *, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def keep(self, tenant: str, user_id: str, summary: str) -> None:
        """Keep a summary until its time is over or the next one comes. Raises StoreError when it was not kept."""
        await self._store.put(_key(tenant, user_id), summary.encode(), ttl_s=self._ttl_s)

    async def read(self, tenant: str, user_id: str) -> str:
        """Return the summary of a user, or "" where there is none that can be believed. Never raises."""
        try:
            (value,) = await self._store.get_many([_key(tenant, user_id)])
        except StoreError:
            return ""
        text = (value or b"").decode("utf-8", "replace")
        plain = len(text) <= MAX_CHARS and clean_text(text, limit=MAX_CHARS) == text and is_quotable(text)
        return text if plain else ""


def _key(tenant: str, user_id: str) -> str:
    return f"interests:{tenant}:{hashlib.blake2b(user_id.encode(), digest_size=16).hexdigest()}"
