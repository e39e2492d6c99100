"""Sources that only know a release's own items, made to answer for a catalog that has grown since.

What people did is counted per item of the release; a newer item has no behaviour yet, so such a source has no opinion
of it (a score of 0). Called by the retrieval engine.
"""

from __future__ import annotations

import numpy as np

from models.candidates import Source
from models.opinion import Mask, Opinion, Rows, Scores
from models.retrieval.sources import RetrievalSource
from models.retrieval.state import UserState


class ReleaseOnly:
    """A `RetrievalSource` that shows `inner` only the items of the release, and pads what it answers."""

    def __init__(self, inner: RetrievalSource, items: int) -> None:
        """`items` is the number of items `inner` was fitted on."""
        self.source: Source = inner.source
        self._inner, self._items = inner, items

    def opinion(self, state: UserState) -> Opinion | None:
        """See `RetrievalSource.opinion`."""
        found = self._inner.opinion(state.within(self._items))
        return None if found is None else _Padded(found, self._items)


class _Padded:
    """An `Opinion` that is 0 beyond the items it knows, and never proposes them."""

    def __init__(self, inner: Opinion, items: int) -> None:
        self._inner, self._items = inner, items

    @property
    def spread(self) -> float:
        """See `Opinion.spread`; a few new items do not change it much."""
        return self._inner.spread

    def of(self, rows: Rows) -> Scores:
        """See `Opinion.of`."""
        scores, known = np.zeros(len(rows), np.float32), rows < self._items
        scores[known] = self._inner.of(rows[known])
        return scores

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`."""
        return self._inner.top(n, allowed[: self._items])
