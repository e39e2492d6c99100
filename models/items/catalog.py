"""A release's catalog with the items that changed since, behind the interface of `ItemCatalog`.

A row means the same item for as long as its release lives: new items get the rows after the release's, in the order of
the log, and changed ones keep theirs. Called wherever a catalog is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from models.catalog import Item, ItemCatalog, LabelColumn
from models.ids import hash64_array

Rows = npt.NDArray[np.int32]


class LiveCatalog(ItemCatalog):
    """`release` with other items in some rows, and more rows. Immutable and safe to share between threads."""

    def __init__(self, release: ItemCatalog, rows: Rows, items: Sequence[Item]) -> None:
        """`rows` ascend, one per item; those beyond the release follow it without a gap."""
        self.release, self.live_rows = release, rows
        self._live = ItemCatalog.of(items)
        self._new = int(np.searchsorted(rows, len(release)))  # position of the first item the release lacks
        self._position = {int(row): at for at, row in enumerate(rows)}

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:  # type: ignore[override]
        """64-bit hashes of all item ids, by row."""
        return np.concatenate([self.release.hashes, self._live.hashes[self._new :]])

    def __len__(self) -> int:
        return len(self.release) + len(self.live_rows) - self._new

    def row(self, item_id: str) -> int | None:
        """See `ItemCatalog.row`."""
        at = self._live.row(item_id)
        return self.release.row(item_id) if at is None else int(self.live_rows[at])

    def rows_of_hashes(self, hashes: npt.NDArray[np.uint64]) -> Rows:
        """See `ItemCatalog.rows_of_hashes`."""
        rows = self.release.rows_of_hashes(hashes)
        at = self._live.rows_of_hashes(hashes)
        return np.where(at >= 0, self.live_rows[at] if len(self.live_rows) else rows, rows).astype(np.int32)

    def rows(self, item_ids: Sequence[str]) -> Rows:
        """See `ItemCatalog.rows`."""
        rows = self.release.rows(item_ids)
        at = self._live.rows_of_hashes(hash64_array(item_ids))
        for position in np.flatnonzero(at >= 0).tolist():
            if self._live.item_id(int(at[position])) == item_ids[position]:
                rows[position] = self.live_rows[at[position]]
        return rows

    def item_id(self, row: int) -> str:
        """See `ItemCatalog.item_id`."""
        catalog, at = self._where(row)
        return catalog.item_id(at)

    def item_ids(self, rows: Rows) -> list[str]:
        """See `ItemCatalog.item_ids`; an item's id never changes, so only new rows are looked up here."""
        new = rows >= len(self.release)
        if not new.any():
            return self.release.item_ids(rows)
        ids = np.empty(len(rows), object)
        ids[~new] = self.release.item_ids(rows[~new])
        ids[new] = [self.item_id(int(row)) for row in rows[new]]
        return list(ids)

    def title(self, row: int) -> str:
        """See `ItemCatalog.title`."""
        catalog, at = self._where(row)
        return catalog.title(at)

    def text(self, row: int) -> str:
        """See `ItemCatalog.text`."""
        catalog, at = self._where(row)
        return catalog.text(at)

    def labels(self, row: int) -> dict[str, tuple[str, ...]]:
        """See `ItemCatalog.labels`."""
        catalog, at = self._where(row)
        return catalog.labels(at)

    def numbers(self, row: int) -> dict[str, float]:
        """See `ItemCatalog.numbers`."""
        catalog, at = self._where(row)
        return catalog.numbers(at)

    def documents(self, rows: Rows) -> list[str]:
        """See `ItemCatalog.documents`."""
        return [self.document(int(row)) for row in rows]

    def media(self, name: str, rows: Rows) -> list[str]:
        """See `ItemCatalog.media`."""
        found = []
        for row in rows:
            catalog, at = self._where(int(row))
            found += catalog.media(name, np.array([at], np.int32))
        return found

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """See `ItemCatalog.label_names`."""
        return tuple(sorted({*self.release.label_names, *self._live.label_names}))

    @cached_property
    def number_names(self) -> tuple[str, ...]:
        """See `ItemCatalog.number_names`."""
        return tuple(sorted({*self.release.number_names, *self._live.number_names}))

    def number_column(self, name: str) -> npt.NDArray[np.float64] | None:
        """See `ItemCatalog.number_column`."""
        if name not in self.number_names:
            return None
        column = np.full(len(self), np.nan)
        for part, rows in ((self.release, slice(len(self.release))), (self._live, self.live_rows)):
            values = part.number_column(name)
            column[rows] = np.nan if values is None else values
        return column

    def _read_labels(self, name: str) -> LabelColumn:
        old = self.release.label_column(name) or _unlabelled(len(self.release))
        new = self._live.label_column(name) or _unlabelled(len(self._live))
        vocabulary = tuple(dict.fromkeys((*old.vocabulary, *new.vocabulary)))
        code_of = {value: code for code, value in enumerate(vocabulary)}
        live = np.zeros(len(self), bool)
        live[self.live_rows] = True
        lengths = np.zeros(len(self), np.int32)
        lengths[: len(self.release)] = np.diff(old.offsets)
        lengths[self.live_rows] = np.diff(new.offsets)
        offsets = np.zeros(len(self) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        codes = np.empty(int(offsets[-1]), np.int32)
        from_live = np.repeat(live, lengths)
        codes[~from_live] = old.codes[np.repeat(~live[: len(self.release)], np.diff(old.offsets))]
        codes[from_live] = np.array([code_of[v] for v in new.vocabulary], np.int32)[new.codes]
        return LabelColumn(offsets, codes, vocabulary)

    def _where(self, row: int) -> tuple[ItemCatalog, int]:
        at = self._position.get(row)
        return (self.release, row) if at is None else (self._live, at)


def _unlabelled(items: int) -> LabelColumn:
    return LabelColumn(np.zeros(items + 1, np.int32), np.empty(0, np.int32), ())
