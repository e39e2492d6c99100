"""`LiveItems`: what the item log made of a release's items up to a sequence number.

Every replica folds the same log over the same catalog and therefore gives the same row to a new item. Immutable; called
by the live bundle. Knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.items.catalog import LiveCatalog
from models.items.change import LiveItem, Numbered, new_item
from models.items.vectors import LiveVectors
from models.media.layout import Layout


@dataclass(frozen=True, slots=True)
class LiveItems:
    """Changed and new items by catalog row, up to change number `sequence` of the log."""

    sequence: int = 0
    items: Mapping[int, LiveItem] = field(default_factory=dict)

    def after(self, changes: Iterable[Numbered], release: ItemCatalog) -> LiveItems:
        """Return the state after more changes. What cannot be applied (an unknown item) changes nothing."""
        items, sequence = dict(self.items), self.sequence
        row_of = {live.item.item_id: row for row, live in items.items()}
        following = len(release) + sum(row >= len(release) for row in items)
        for number, change in changes:
            sequence = number
            if change is None:
                continue
            row = row_of.get(change.item_id)
            if row is None:
                row = release.row(change.item_id)
            if row is None:
                if change.operation != "put":
                    continue
                items[following] = new_item(change)
                row_of[change.item_id] = following
                following += 1
            else:
                before = items.get(row) or LiveItem(release.item(row))
                items[row] = before.after(change)
                row_of[change.item_id] = row
        return LiveItems(sequence, items)

    def catalog(self, release: ItemCatalog) -> LiveCatalog:
        """Return `release` with these items."""
        return LiveCatalog(release, self._rows(), [self.items[row].item for row in sorted(self.items)])

    def vectors(
        self,
        release: npt.NDArray[np.float32],
        catalog: ItemCatalog,
        layout: Layout | None = None,
        *,
        compares: Callable[[bytes], bool] = lambda _: True,
    ) -> LiveVectors:
        """Return `release` (float32[items, dim], the vectors of `catalog`) with the vectors of these items.

        The log holds vectors of texts; `layout` makes them vectors of items where a release has more than text. An item
        keeps the picture and sound that the release read while it names the same; one that names another is compared by
        its text until the next release reads it. `compares` tells by its tag whether a vector is of the encoder of
        `release`. Where it is not, or there is none: a new item is like nothing, its vector is zero; one of the release
        keeps what the release has, which is of its earlier text.
        """
        dropped = {} if layout is None else self._other_media(catalog, layout)
        found = {row: self._vector(row, release, layout, dropped.get(row), compares) for row in sorted(self.items)}
        changed = {row: vector for row, vector in found.items() if vector is not None}
        stacked = np.array(list(changed.values()), np.float32).reshape(len(changed), release.shape[1])
        return LiveVectors(release, np.array(list(changed), np.int32), stacked)

    def withheld(self, size: int) -> npt.NDArray[np.bool_]:
        """Return bool[size], True in the rows of items that must not be recommended."""
        mask = np.zeros(size, bool)
        mask[[row for row, live in self.items.items() if not live.shown]] = True
        return mask

    def first_ms(self, release_size: int) -> npt.NDArray[np.int64]:
        """Return when each new item was last put, int64[new items] by row."""
        new = sorted(row for row in self.items if row >= release_size)
        return np.array([self.items[row].changed_ms for row in new], np.int64)

    def _vector(
        self,
        row: int,
        release: npt.NDArray[np.float32],
        layout: Layout | None,
        dropped: set[str] | None,
        compares: Callable[[bytes], bool],
    ) -> npt.NDArray[np.float32] | None:
        """Return the vector of one item, None where it is that of the release."""
        live, size = self.items[row], release.shape[1] if layout is None else layout.text
        text = live.vector if compares(live.tag) else None
        if text is not None and len(text) != size:
            text = None  # of another encoder, from before there were tags
        if row >= len(release):
            if text is None:
                return np.zeros(release.shape[1], np.float32)
            return text if layout is None else layout.item(text)
        if layout is None or (text is None and dropped is None):
            return text
        before = np.asarray(release[row], np.float32)
        return layout.changed(before, layout.text_of(before) if text is None else text, without=dropped or ())

    def _other_media(self, catalog: ItemCatalog, layout: Layout) -> dict[int, set[str]]:
        """Return, by row of the release, what an item names otherwise than `catalog` does."""
        rows = self._rows()
        rows = rows[rows < len(catalog)]
        other: dict[int, set[str]] = {}
        for part in layout.parts:
            for row, before in zip(rows.tolist(), catalog.media(part.name, rows), strict=True):
                if self.items[row].item.media.get(part.name, "") != before:
                    other.setdefault(row, set()).add(part.name)
        return other

    def _rows(self) -> npt.NDArray[np.int32]:
        return np.array(sorted(self.items), np.int32)
