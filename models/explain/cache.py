"""The reason cache of one process: bounded, least recently used goes first, entries expire.

Only sentences that a model wrote and the checker passed are kept; templates cost nothing to make again. Called by
the explainer; knows nothing of evidence beyond its hash.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class ReasonCache:
    """Maps a key to a sentence for `ttl_s` seconds; at most `size` entries. For one event loop."""

    def __init__(self, *, size: int = 20_000, ttl_s: float = 86_400.0, clock: Callable[[], float] = time.monotonic):
        self._size = size
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[Hashable, tuple[float, str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> str | None:
        """Return the sentence, or None when it is unknown or has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, key: Hashable, text: str) -> None:
        """Keep `text`; the least recently used entry leaves when there is no room."""
        if self._size <= 0:
            return
        self._entries[key] = (self._clock() + self._ttl_s, text)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
