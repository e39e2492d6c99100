"""What people wrote about items: the imported form of a review. Knows nothing of files or of what is made of them.

Who wrote a review is not kept. Only that two reviews of one item have the same writer is, as a number that means
nothing outside the item, so that one person cannot pass for many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAX_CHARS = 10_000
"""Longest text of a review that is taken."""
RATING_MOST = 5.0
"""Ratings are between 0 and this, as those of events are."""


@dataclass(frozen=True, slots=True)
class Review:
    """One review of an item: cleaned text on one line.

    `writer` numbers the writers of this item's reviews; where the source does not tell who wrote, each has its own.
    `time_ms` is 0 where the source has no time, `rating` None where there is none.
    """

    text: str
    rating: float | None = None
    writer: int = 0
    time_ms: int = 0


ReviewsByItem = Mapping[str, tuple[Review, ...]]
"""Reviews by item id, newest first; items without one are not in it."""
