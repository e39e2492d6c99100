"""Which items a request allows at all: attributes, seen, excluded, given lists.

Answers are boolean masks over the catalog; attribute masks are kept, since the same few filters come again and
again. Called by the retrieval engine. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog, LabelColumn
from models.retrieval.query import AttributeFilter

Mask = npt.NDArray[np.bool_]
KEPT_BYTES = 64 << 20
"""Memory that remembered masks may take."""


class AttributeMasks:
    """Turns attribute filters into masks over the items of one catalog. Thread-safe."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self._catalog = catalog
        self._values = lru_cache(maxsize=256)(self._values_of)
        self.of_one = lru_cache(maxsize=max(4, min(1024, KEPT_BYTES // max(1, len(catalog)))))(self._of_one)

    def all_of(self, filters: Mapping[str, AttributeFilter]) -> Mask:
        """Return a fresh mask of the items that pass every filter."""
        mask = np.ones(len(self._catalog), dtype=bool)
        for name, wanted in filters.items():
            mask &= self.of_one(name, wanted)
        return mask

    def knows(self, name: str, value: str) -> bool:
        """Whether an item carries `value`, compared as filters compare; looks it up without going through items."""
        words, numbers = self._values(name)
        return value.casefold() in words or _number(value) in numbers

    def _values_of(self, name: str) -> tuple[frozenset[str], frozenset[float | None]]:
        labels, numbers = self._catalog.label_column(name), self._catalog.number_column(name)
        words = frozenset() if labels is None else frozenset(v.casefold() for v in labels.vocabulary)
        return words, frozenset() if numbers is None else frozenset(numbers[~np.isnan(numbers)].tolist())

    def _of_one(self, name: str, wanted: AttributeFilter) -> Mask:
        mask = np.ones(len(self._catalog), dtype=bool)
        labels, numbers = self._catalog.label_column(name), self._catalog.number_column(name)
        if wanted.any_of is not None:
            mask &= self._carries(labels, numbers, wanted.any_of)
        for value in wanted.all_of or ():
            mask &= self._carries(labels, numbers, (value,))
        if wanted.all_of is not None:
            mask &= self._has_any(labels, numbers)
        if wanted.none_of is not None:
            mask &= ~self._carries(labels, numbers, wanted.none_of)
        if wanted.gte is not None or wanted.lte is not None:
            # A comparison with NaN is false, so an item without the attribute fails, as it must.
            values = np.full(len(mask), np.nan) if numbers is None else numbers
            mask &= values >= (-np.inf if wanted.gte is None else wanted.gte)
            mask &= values <= (np.inf if wanted.lte is None else wanted.lte)
        mask.setflags(write=False)
        return mask

    def _carries(
        self, labels: LabelColumn | None, numbers: npt.NDArray[np.float64] | None, values: tuple[str, ...]
    ) -> Mask:
        """Whether an item has any of `values`, as a label or, written out, as a number."""
        mask = np.zeros(len(self._catalog), dtype=bool)
        if labels is not None:
            mask |= labels.mask_of(values)
        if numbers is not None:
            mask |= np.isin(numbers, [n for n in map(_number, values) if n is not None])
        return mask

    def _has_any(self, labels: LabelColumn | None, numbers: npt.NDArray[np.float64] | None) -> Mask:
        mask = np.zeros(len(self._catalog), dtype=bool)
        if labels is not None:
            mask |= np.diff(labels.offsets) > 0
        if numbers is not None:
            mask |= ~np.isnan(numbers)
        return mask


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
