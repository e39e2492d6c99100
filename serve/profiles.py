"""Last-known profiles of an ingress replica: the rung "stale profile" of the degradation ladder.

Bounded by number of users and by the size of each. Never written anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from models.features import ANONYMOUS, UserFeatures

Key = tuple[str, str | None, str | None]
MAX_SEEN_KEPT = 4096


class StaleProfiles:
    """An LRU of user features by (tenant, user, session)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Key, UserFeatures] = OrderedDict()

    def put(self, key: Key, user: UserFeatures) -> None:
        """Remember fresh features; very large profiles are not kept."""
        if self._capacity <= 0 or len(user.seen) > MAX_SEEN_KEPT:
            return
        self._kept[key] = user
        self._kept.move_to_end(key)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def get(self, key: Key) -> UserFeatures:
        """Return the last-known features marked stale, or those of a stranger marked stale."""
        return replace(self._kept.get(key, ANONYMOUS), stale=True)
