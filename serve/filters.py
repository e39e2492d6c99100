"""Filters: the last word on what must not be shown. Retrieval already obeys them; here it is proven.

A filter returns a mask and never reorders. What was dropped, and by which filter, is counted for the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.retrieval.filters import AttributeMasks
from models.retrieval.query import RetrievalQuery

Mask = npt.NDArray[np.bool_]


class Filter(Protocol):
    """Decides for each candidate whether it may be shown."""

    @property
    def name(self) -> str:
        """What dropped items are counted under."""
        ...

    def keep(self, candidates: Candidates) -> Mask:
        """Return bool[len(candidates)], True for those that may stay."""
        ...


@dataclass(frozen=True)
class HashFilter:
    """Drops items whose id hash is in `banned` (seen, excluded, or shown on an earlier page)."""

    name: str
    catalog: ItemCatalog
    banned: npt.NDArray[np.uint64]

    def keep(self, candidates: Candidates) -> Mask:
        """See `Filter.keep`."""
        return ~np.isin(self.catalog.hashes[candidates.rows], self.banned)


@dataclass(frozen=True)
class WithheldFilter:
    """Drops items that are hidden, unavailable or removed, and items newer than this process knows."""

    withheld: Mask
    name: str = "withheld"

    def keep(self, candidates: Candidates) -> Mask:
        """See `Filter.keep`."""
        known: Mask = candidates.rows < len(self.withheld)
        known[known] = ~self.withheld[candidates.rows[known]]
        return known


@dataclass(frozen=True)
class AttributesFilter:
    """Drops items that violate an attribute condition of the request."""

    masks: AttributeMasks
    query: RetrievalQuery
    name: str = "attributes"

    def keep(self, candidates: Candidates) -> Mask:
        """See `Filter.keep`."""
        return self.masks.all_of(self.query.filters)[candidates.rows]


def apply_filters(candidates: Candidates, filters: list[Filter]) -> tuple[Candidates, dict[str, int]]:
    """Apply each filter in turn; return what is left and how many each one dropped."""
    dropped: dict[str, int] = {}
    for one in filters:
        if not len(candidates):
            break
        mask = one.keep(candidates)
        if not mask.all():
            dropped[one.name] = int((~mask).sum())
            candidates = candidates.take(mask)
    return candidates, dropped
