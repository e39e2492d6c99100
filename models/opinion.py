"""Opinions: what one source of recommendations thinks of the items, for one query.

Dense (a score per item), sparse (a few items) or linear (a vector against item vectors); all answer the same
three questions, so that a merger need not know which is which. Called by behaviour models and retrieval.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int32]
Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Opinion(Protocol):
    """Scores of items for one query; higher is better."""

    @property
    def spread(self) -> float:
        """Standard deviation of the scores over the whole catalog; 0.0 when the opinion tells nothing apart."""
        ...

    def of(self, rows: Rows) -> Scores:
        """Return the scores of `rows`, float32[len(rows)]."""
        ...

    def top(self, n: int, allowed: Mask) -> Rows:
        """Return up to `n` allowed rows with the highest scores, best first, ties by row."""
        ...


def top_rows(rows: Rows, scores: Scores, n: int) -> Rows:
    """Return the `n` of `rows` with the highest `scores`, best first, ties by row; exact at the boundary."""
    if n <= 0 or not len(rows):
        return np.empty(0, np.int32)
    if n < len(rows):
        least = np.partition(scores, len(scores) - n)[len(scores) - n]
        kept = np.flatnonzero(scores >= least)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:n]
    return np.asarray(rows[order], np.int32)


class DenseOpinion:
    """A score for every item."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores

    @cached_property
    def spread(self) -> float:
        """See `Opinion.spread`."""
        return float(self._scores.std()) if len(self._scores) else 0.0

    def of(self, rows: Rows) -> Scores:
        """See `Opinion.of`."""
        return self._scores[rows]

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`."""
        rows = np.flatnonzero(allowed).astype(np.int32)
        return top_rows(rows, self._scores[rows], n)


class SparseOpinion:
    """Scores for a few items; every other item has 0 and is never in `top`."""

    def __init__(self, rows: Rows, scores: Scores, items: int, *, damped: bool = False) -> None:
        """`rows` may repeat: scores add up; `damped` takes the root of the sums. `items` is the catalog's size."""
        self._rows, inverse = np.unique(rows, return_inverse=True)
        self._scores = np.bincount(inverse, weights=scores, minlength=len(self._rows)).astype(np.float32)
        if damped:
            self._scores = np.sqrt(self._scores)
        self._items = items

    @cached_property
    def spread(self) -> float:
        """See `Opinion.spread`; the zeros of all other items count."""
        if not self._items:
            return 0.0
        mean = float(self._scores.sum()) / self._items
        return float(np.sqrt(max(0.0, float((self._scores**2).sum()) / self._items - mean * mean)))

    def of(self, rows: Rows) -> Scores:
        """See `Opinion.of`."""
        if not len(self._rows):
            return np.zeros(len(rows), np.float32)
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        return np.where(self._rows[at] == rows, self._scores[at], np.float32(0.0)).astype(np.float32)

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`."""
        kept = allowed[self._rows] & (self._scores > 0)
        return top_rows(self._rows[kept].astype(np.int32), self._scores[kept], n)


class PositiveOpinion(DenseOpinion):
    """A score for every item, where 0 is no opinion: such items are never in `top`."""

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`."""
        return super().top(n, allowed & (self._scores > 0))


class LinearOpinion:
    """Inner products of one vector with item vectors, found through an index where the catalog is large."""

    def __init__(
        self,
        vectors: Scores,
        query: Scores,
        *,
        spread: float,
        search: Callable[[Scores, int, Mask], Rows],
    ) -> None:
        """`vectors` float32[items, dim] (may be mapped); `search(query, n, allowed)` returns rows, best first."""
        self._vectors, self._query, self._spread, self._search = vectors, query, spread, search

    @property
    def spread(self) -> float:
        """See `Opinion.spread`; estimated from the covariance of the item vectors."""
        return self._spread

    def of(self, rows: Rows) -> Scores:
        """See `Opinion.of`."""
        return np.asarray(self._vectors[rows] @ self._query, np.float32)

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`."""
        return self._search(self._query, n, allowed)


class RankedOpinion(DenseOpinion):
    """A score for every item that is the same for everybody, so its order is known beforehand."""

    def __init__(self, scores: Scores) -> None:
        super().__init__(scores)
        self._order = np.lexsort((np.arange(len(scores)), -scores)).astype(np.int32)

    def top(self, n: int, allowed: Mask) -> Rows:
        """See `Opinion.top`; reads the order in growing blocks, so that a large catalog is not scanned."""
        found: list[Rows] = []
        missing, start, block = n, 0, 4 * n
        while missing > 0 and start < len(self._order):
            rows = self._order[start : start + block]
            rows = rows[allowed[rows]][:missing]
            found.append(rows)
            missing, start, block = missing - len(rows), start + block, 4 * block
        return np.concatenate(found) if found else np.empty(0, np.int32)
