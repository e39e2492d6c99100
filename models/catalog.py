"""The item catalog: titles, texts and attributes, memory-mapped from one Arrow file.

Every process that needs item text maps the same file of the pinned release; text never travels between
processes. A *row* is an item's position in the file. Called by retrieval, ranking, reasons and filters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.ids import hash64, hash64_array

CATALOG_FILE = "catalog.arrow"
_LABEL, _NUMBER, _MEDIA = "label:", "number:", "media:"
MODALITIES = ("image", "audio")
"""What an item may carry beside its text."""
REVIEWED = {"praised": "praised_for", "criticised": "criticised_for", "disputed": "disputed"}
"""Label names by what reviews say of an aspect (`models.explain.aspects`). Nobody else may give an item such a label,
and neither texts nor rankers read them: ranking never reads what a language model wrote."""
_UNWRITTEN = frozenset(REVIEWED.values())


@dataclass(frozen=True, slots=True)
class Item:
    """One catalog item. `labels` are closed-set attributes (genres, brand), `numbers` are ordered ones (year).

    `media` names, by modality, the path or URL of a picture or sound; see `models.media`.
    """

    item_id: str
    title: str
    text: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    media: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One attribute as CSR: item `r` has the codes `codes[offsets[r]:offsets[r+1]]` into `vocabulary`."""

    offsets: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    vocabulary: tuple[str, ...]

    def mask_of(self, values: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Return, per item, whether it carries any of `values` (compared without case)."""
        wanted = {v.casefold() for v in values}
        hit = np.fromiter((v.casefold() in wanted for v in self.vocabulary), bool, len(self.vocabulary))
        out = np.zeros(len(self.offsets) - 1, dtype=bool)
        if len(self.codes):
            owner = np.repeat(np.arange(len(out)), np.diff(self.offsets))
            out[owner[hit[self.codes]]] = True
        return out


def write_catalog(items: Sequence[Item], path: Path) -> None:
    """Write `items` to `path` (an Arrow IPC file). Raises ValueError on a duplicate id."""
    import pyarrow as pa

    table = _table_of(items)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def document_of(item: Item) -> str:
    """Return the text that encoders and text rankers read of an item: title, labels, numbers, description."""
    parts = [item.title]
    parts += [", ".join(values) for name, values in sorted(item.labels.items()) if values and name not in _UNWRITTEN]
    parts += [f"{name} {value:g}" for name, value in sorted(item.numbers.items())]
    parts.append(item.text)
    return ". ".join(p for p in parts if p)


def _table_of(items: Sequence[Item]) -> Any:
    import pyarrow as pa

    ids = [i.item_id for i in items]
    if len(set(ids)) != len(ids):
        raise ValueError("the catalog holds an item id twice")
    columns: dict[str, Any] = {
        "id": pa.array(ids, pa.string()),
        "title": pa.array([i.title for i in items], pa.string()),
        "text": pa.array([i.text for i in items], pa.string()),
    }
    for name in sorted({n for i in items for n in i.labels}):
        columns[_LABEL + name] = pa.array([list(i.labels.get(name, ())) for i in items], pa.list_(pa.string()))
    for name in sorted({n for i in items for n in i.numbers}):
        columns[_NUMBER + name] = pa.array([i.numbers.get(name) for i in items], pa.float64())
    for name in MODALITIES:
        if any(name in i.media for i in items):
            columns[_MEDIA + name] = pa.array([i.media.get(name) for i in items], pa.string())
    return pa.table(columns).combine_chunks()


class ItemCatalog:
    """Read access to a written catalog. Immutable and safe to share between threads."""

    def __init__(self, path: Path) -> None:
        """Map the file at `path` (a folder with `catalog.arrow`, or the file)."""
        import pyarrow as pa

        file = path / CATALOG_FILE if path.is_dir() else path
        with pa.memory_map(str(file)) as source:
            self._read(pa.ipc.open_file(source).read_all())

    @classmethod
    def of(cls, items: Sequence[Item]) -> ItemCatalog:
        """Return a catalog in memory. Raises ValueError on a duplicate id."""
        catalog = cls.__new__(cls)
        catalog._read(_table_of(items))
        return catalog

    def _read(self, table: Any) -> None:
        self._table = table
        self._column = {n: self._table[n].combine_chunks() for n in self._table.column_names}
        self.hashes: npt.NDArray[np.uint64] = hash64_array(self._column["id"].to_pylist())
        self._order = np.argsort(self.hashes, kind="stable")
        self._sorted = self.hashes[self._order]

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def row(self, item_id: str) -> int | None:
        """Return the row of an item, or None when the catalog does not hold it."""
        at = int(np.searchsorted(self._sorted, np.uint64(hash64(item_id))))
        if at < len(self._sorted) and self._sorted[at] == hash64(item_id):
            row = int(self._order[at])
            return row if self.item_id(row) == item_id else None
        return None

    def rows(self, item_ids: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the row of each id, -1 for unknown ones; same length and order."""
        rows = self.rows_of_hashes(hash64_array(item_ids))
        known = np.flatnonzero(rows >= 0)
        # A foreign id may share the hash of one of ours, however unlikely that is.
        for at, held in zip(known.tolist(), self.item_ids(rows[known]), strict=True):
            if held != item_ids[at]:
                rows[at] = -1
        return rows

    def rows_of_hashes(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the row of each id hash (as a user's seen set holds them), -1 for unknown ones."""
        if not len(self):
            return np.full(len(hashes), -1, np.int32)
        at = np.minimum(np.searchsorted(self._sorted, hashes), len(self) - 1)
        return np.where(self._sorted[at] == hashes, self._order[at], -1).astype(np.int32)

    def item_id(self, row: int) -> str:
        """Return the id of the item in `row`."""
        return str(self._column["id"][row].as_py())

    def item_ids(self, rows: npt.NDArray[np.int32]) -> list[str]:
        """Return the ids of many rows."""
        return [str(v) for v in self._column["id"].take(_indices(rows)).to_pylist()]

    def title(self, row: int) -> str:
        """Return the title as imported (not cleaned for prompts)."""
        return str(self._column["title"][row].as_py() or "")

    def text(self, row: int) -> str:
        """Return the description, or "" where there is none."""
        return str(self._column["text"][row].as_py() or "")

    def item(self, row: int) -> Item:
        """Return everything that is known of the item in `row`."""
        media = {name: found[0] for name in MODALITIES if (found := self.media(name, np.array([row], np.int32)))[0]}
        return Item(self.item_id(row), self.title(row), self.text(row), self.labels(row), self.numbers(row), media)

    def labels(self, row: int) -> dict[str, tuple[str, ...]]:
        """Return the item's closed-set attributes; names without a value are left out."""
        out = {}
        for name in self.label_names:
            values = self._column[_LABEL + name][row].as_py()
            if values:
                out[name] = tuple(values)
        return out

    def numbers(self, row: int) -> dict[str, float]:
        """Return the item's ordered attributes; names without a value are left out."""
        values = {n: self._column[_NUMBER + n][row].as_py() for n in self.number_names}
        return {n: float(v) for n, v in values.items() if v is not None}

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of the closed-set attributes."""
        return tuple(n.removeprefix(_LABEL) for n in self._table.column_names if n.startswith(_LABEL))

    @cached_property
    def trait_names(self) -> tuple[str, ...]:
        """Names of the closed-set attributes that came with the items: all but what reviews say."""
        return tuple(name for name in self.label_names if name not in _UNWRITTEN)

    @cached_property
    def number_names(self) -> tuple[str, ...]:
        """Names of the ordered attributes."""
        return tuple(n.removeprefix(_NUMBER) for n in self._table.column_names if n.startswith(_NUMBER))

    @cached_property
    def _label_columns(self) -> dict[str, LabelColumn]:
        return {n: self._read_labels(n) for n in self.label_names}

    def label_column(self, name: str) -> LabelColumn | None:
        """Return one attribute of all items as CSR, or None for an unknown name."""
        return self._label_columns.get(name)

    def number_column(self, name: str) -> npt.NDArray[np.float64] | None:
        """Return one ordered attribute of all items (NaN where missing), or None for an unknown name."""
        if name not in self.number_names:
            return None
        values = self._column[_NUMBER + name].to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.float64)

    def document(self, row: int) -> str:
        """Return the text that encoders and text rankers read, see `document_of`."""
        return document_of(self.item(row))

    def documents(self, rows: npt.NDArray[np.int32]) -> list[str]:
        """Return the documents of many rows of a catalog; ten times faster than one by one."""
        at = _indices(rows)
        columns = {name: column.take(at).to_pylist() for name, column in self._column.items()}
        found = []
        for n in range(len(rows)):
            parts = [columns["title"][n] or ""]
            parts += [", ".join(v) for name in self.trait_names if (v := columns[_LABEL + name][n])]
            numbers = ((name, columns[_NUMBER + name][n]) for name in self.number_names)
            parts += [f"{name} {value:g}" for name, value in numbers if value is not None]
            parts.append(columns["text"][n] or "")
            found.append(". ".join(p for p in parts if p))
        return found

    def media(self, name: str, rows: npt.NDArray[np.int32]) -> list[str]:
        """Return the path or URL of the picture or sound of many rows, "" where an item has none."""
        column = self._column.get(_MEDIA + name)
        if column is None:
            return [""] * len(rows)
        return [value or "" for value in column.take(_indices(rows)).to_pylist()]

    def version(self, row: int) -> str:
        """Return 16 hex digits that change with anything the catalog says of an item."""
        return hashlib.blake2b(self.document(row).encode(), digest_size=8).hexdigest()

    def digest(self) -> str:
        """Return 32 hex digits that change with anything the catalog says of any item, and with the order of items."""
        digest = hashlib.blake2b(digest_size=16)
        for name, column in sorted(self._column.items()):
            digest.update(json.dumps([name, column.to_pylist()]).encode())
        return digest.hexdigest()

    def _read_labels(self, name: str) -> LabelColumn:
        column = self._column[_LABEL + name]
        encoded = column.flatten().dictionary_encode()
        offsets = np.zeros(len(self) + 1, np.int32)
        np.cumsum(column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), out=offsets[1:])
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        return LabelColumn(offsets, codes, tuple(str(v) for v in encoded.dictionary.to_pylist()))


def _indices(rows: npt.NDArray[np.int32]) -> Any:
    """Return rows as Arrow takes them. Not by `pa.array`, whose first call imports pandas: a quarter of a second."""
    import pyarrow as pa

    whole = np.ascontiguousarray(rows, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(whole), [None, pa.py_buffer(whole)])
