"""Scores kept for profiles that ask again: an event that changes nothing in a profile's words changes no score.

Keyed by profile and by the text of an item; one instance belongs to one model, whatever the catalog. Bounded in
profiles and in scores, least recently asked profiles out first; one profile has at most a quarter of the scores and
loses its own oldest beyond that, since all users without events share one. Safe between threads. Called by rankers
whose pairs are dear.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from itertools import islice


class KeptScores:
    """Scores by profile and whatever names an item's text."""

    def __init__(self, *, profiles: int, scores: int) -> None:
        """Keep at most that many of both; with `profiles` 0 nothing is kept."""
        self._profiles, self._limit = profiles, scores
        self._share = -(-scores // 4)
        self._kept: OrderedDict[bytes, dict[bytes, float]] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    def of(self, profile: str, keys: Iterable[bytes]) -> dict[bytes, float]:
        """Return what is kept of `profile` under `keys`; the profile becomes the last to be forgotten."""
        key = _key(profile)
        with self._lock:
            known = self._kept.get(key)
            if known is None:
                return {}
            self._kept.move_to_end(key)
            return {name: known[name] for name in keys if name in known}

    def keep(self, profile: str, scores: Mapping[bytes, float]) -> None:
        """Add `scores` by key, and forget the oldest where there are too many."""
        if self._profiles == 0 or not scores:
            return
        key = _key(profile)
        with self._lock:
            known = self._kept.setdefault(key, {})
            self._kept.move_to_end(key)
            before = len(known)
            known.update(scores)
            for old in list(islice(known, max(0, len(known) - self._share))):
                del known[old]
            self._count += len(known) - before
            while self._kept and (len(self._kept) > self._profiles or self._count > self._limit):
                self._count -= len(self._kept.popitem(last=False)[1])


def _key(profile: str) -> bytes:
    # Half the memory of the words, and no words of a user in a process that need not hold them.
    return hashlib.blake2b(profile.encode("utf-8", "surrogatepass"), digest_size=16).digest()
