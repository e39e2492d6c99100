"""The user's side of a text pair: interests and recent titles in plain words, newest first. No ids, no times.

The same function makes training pairs and serves, so that a text ranker reads what it was trained on.
Knows nothing of tokenisers. Called by the text ranker and its training.
"""

from __future__ import annotations

import numpy as np

from models.catalog import ItemCatalog
from models.events import EventType
from models.rankers.history import recent_history
from models.retrieval.query import RetrievalQuery

PROFILE_TITLES = 8
"""How many titles a profile names; the newest say most and every token costs."""

_TITLE_CHARS = 160
_REFUSED = (EventType.dislike, EventType.hide)


def profile_text(query: RetrievalQuery, catalog: ItemCatalog, *, titles: int = PROFILE_TITLES) -> str:
    """Return the recent past in words, for example `Liked: Alien; Blade Runner.`; "" for a user without any.

    What was written of the user's interests before comes first. A rating below the user's own mean counts as not liked.
    Every item is named once, by its newest event.
    """
    history = recent_history(query, catalog)
    refused = np.isin(history.types, [int(t) for t in _REFUSED])
    rated = history.types == EventType.rating
    if rated.any():
        refused |= rated & (history.values < history.values[rated].mean() - 0.5)
    liked: dict[int, None] = {}
    disliked: dict[int, None] = {}
    for at in range(len(history) - 1, -1, -1):
        row = int(history.rows[at])
        if row not in liked and row not in disliked:
            (disliked if refused[at] else liked)[row] = None
    summary = query.user.summary if query.personal else ""
    parts = [summary, _sentence("Liked", list(liked)[:titles], catalog)]
    parts.append(_sentence("Did not like", list(disliked)[: titles // 4], catalog))
    return " ".join(p for p in parts if p)


def _sentence(head: str, rows: list[int], catalog: ItemCatalog) -> str:
    names = [t for r in rows if (t := " ".join(catalog.title(r).split())[:_TITLE_CHARS])]
    return f"{head}: {'; '.join(names)}." if names else ""
