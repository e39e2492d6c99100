"""From a catalog to its embeddings file: what is known is copied, what changed is computed block by block.

Memory does not grow with the catalog beyond its content hashes: texts are read by the workers, vectors go from block
files to their place in the result. Called by `build` (in process) and `reembed` (by Ray Data).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.artifacts import Artifact, ArtifactError, ArtifactStore
from models.bundle import EMBEDDINGS_FILE
from models.catalog import ItemCatalog
from models.media.decode import READING
from models.media.layout import Layout
from models.progress import Progress, silent
from models.vectors import Dtype, open_vectors
from pipelines.embedding.blocks import Block, BlockError, BlockFolder, EncoderSpec, Vectors, cut
from pipelines.embedding.content import CONTENT_FILE, Contents, ContentTable, catalog_contents

_COPIED_ROWS = 8192
Rows = npt.NDArray[np.int64]


class BlockRunner(Protocol):
    """Computes blocks. `InlineRunner` does it here, `RayRunner` with a pool of actors."""

    def run(self, catalog: Artifact, blocks: Sequence[Block], folder: BlockFolder, done: Callable[[int], None]) -> None:
        """Compute every block into `folder`, in any order; `done(items)` is told after each.

        Raises what the encoder raises. Blocks that were finished before stay finished.
        """
        ...


@dataclass(frozen=True, slots=True)
class Embedder:
    """How a catalog's vectors are made. `previous` is a reference of the embeddings that may be taken over."""

    artifacts: ArtifactStore
    spec: EncoderSpec
    runner: BlockRunner
    previous: str | None = None
    full: bool = False
    """Compute every block, whatever is known."""
    max_unread: int = 0
    """Most pictures and sounds that may be unreadable; their items are known by text alone then."""

    def inputs(self, catalog: str) -> dict[str, Any]:
        """Return what the result depends on, for the manifest."""
        inputs: dict[str, Any] = {"catalog": catalog, "encoder": self.spec.uri, "max_tokens": self.spec.max_tokens}
        media = {"media": [list(one) for one in self.spec.media], "read": READING} if self.spec.media else {}
        # Left out where it was always so: artifacts that were made before are found.
        return inputs | media | ({} if self.spec.dtype == "float32" else {"dtype": self.spec.dtype})

    def embed(self, catalog: Artifact, to: Path, progress: Progress = silent) -> Mapping[str, Any]:
        """Write the vectors of `catalog` and their contents into the folder `to`; return facts for the manifest.

        Raises BlockError when more than `max_unread` pictures and sounds could not be read; they are tried again by the
        next run.
        """
        items = ItemCatalog(catalog.path)
        contents, known, source = self._taken(items)
        wanted = np.flatnonzero(known < 0).astype(np.int32)
        blocks = cut(contents, items.hashes, wanted, self.spec)
        folder = BlockFolder(self.artifacts)
        self._compute(catalog, blocks, folder, progress)
        dimension = _dimension(source, blocks, folder)
        with _RowFile(to / EMBEDDINGS_FILE, len(items), dimension, self.spec.dtype) as file:
            for rows, vectors in _copied(known, source):
                file.write(rows, vectors)
            for block in blocks:
                file.write(block.rows.astype(np.int64), folder.read(block))
        np.save(to / CONTENT_FILE, contents, allow_pickle=False)
        facts = {"items": len(items), "dimension": dimension, "space": self.spec.space, "embedded": len(wanted)}
        facts["dtype"] = self.spec.dtype
        layout = self.spec.layout(dimension)
        return facts if layout is None else {**facts, **self._media_facts(layout, items, blocks, folder, to)}

    def forget(self, catalog: Artifact) -> None:
        """Take the finished blocks of `catalog` away, once its embeddings are an artifact."""
        items = ItemCatalog(catalog.path)
        contents, known, _ = self._taken(items)
        wanted = np.flatnonzero(known < 0).astype(np.int32)
        BlockFolder(self.artifacts).remove(cut(contents, items.hashes, wanted, self.spec))

    def _taken(self, items: ItemCatalog) -> tuple[Contents, Rows, Path | None]:
        """Return the contents of all items and what `_known` says of them."""
        contents = catalog_contents(items, self.spec.modalities)
        known, source = self._known(contents)
        if source is not None and self.spec.media:
            before = open_vectors(source, whole_bytes=0)
            layout = self.spec.layout(int(before.shape[1]))
            for name in self.spec.modalities if layout is not None else ():
                # What could not be read then may be there now.
                rows = _naming(items, name)
                rows = rows[known[rows] >= 0]
                known[rows[~_holds(layout, before, known[rows], name)]] = -1
        return contents, known, source

    def _media_facts(
        self, layout: Layout, items: ItemCatalog, blocks: list[Block], folder: BlockFolder, to: Path
    ) -> dict[str, Any]:
        vectors = open_vectors(to / EMBEDDINGS_FILE, whole_bytes=0)
        counts: dict[str, Any] = {}
        unread = np.empty(0, np.int64)
        for name in self.spec.modalities:
            rows = _naming(items, name)
            read = _holds(layout, vectors, rows, name)
            counts[name] = {"named": len(rows), "read": int(read.sum())}
            unread = np.concatenate([unread, rows[~read]])
        if len(unread) > self.max_unread:
            # Finished blocks are taken as they are by the next run, and these are to be tried again.
            folder.remove([block for block in blocks if np.isin(block.rows, unread).any()])
            raise BlockError(
                f"{len(unread)} pictures and sounds of items could not be read, "
                f"pipelines.embedding.max_unread_media = {self.max_unread}"
            )
        return {"layout": layout.to_json(), "media": counts}

    def _known(self, contents: Contents) -> tuple[Rows, Path | None]:
        """Return for each item its row in the previous vectors, -1 for what must be computed, and where those lie."""
        none = np.full(len(contents), -1, np.int64)
        if self.full or self.previous is None:
            return none, None
        try:
            before = self.artifacts.get(self.previous)
        except ArtifactError:
            return none, None  # damaged: everything is computed anew
        if before.meta.get("space") != self.spec.space or not (before.path / CONTENT_FILE).is_file():
            return none, None
        if before.meta.get("dtype", "float32") != self.spec.dtype:
            return none, None  # a file holds one type of numbers, each rounded once
        held = np.load(before.path / CONTENT_FILE, allow_pickle=False)
        return ContentTable(held).rows(contents), before.path / EMBEDDINGS_FILE

    def _compute(self, catalog: Artifact, blocks: list[Block], folder: BlockFolder, progress: Progress) -> None:
        total = sum(len(b.rows) for b in blocks)
        finished = folder.finished(blocks)
        state = {"done": sum(len(b.rows) for b, f in zip(blocks, finished, strict=True) if f)}
        open_blocks = [b for b, f in zip(blocks, finished, strict=True) if not f]
        progress("embed", state["done"], total)

        def done(items: int) -> None:
            state["done"] += items
            progress("embed", state["done"], total)

        if open_blocks:
            self.runner.run(catalog, open_blocks, folder, done)


def _naming(items: ItemCatalog, name: str) -> Rows:
    """Return the rows of items that name a picture or sound."""
    named = items.media(name, np.arange(len(items), dtype=np.int32))
    return np.flatnonzero(np.fromiter((bool(one) for one in named), bool, len(named)))


def _holds(layout: Layout, vectors: Vectors, rows: Rows, name: str) -> npt.NDArray[np.bool_]:
    """Return, for `rows` of mapped vectors, whether they hold a modality; a few thousand rows in memory at a time."""
    parts = [layout.has(vectors[rows[at : at + _COPIED_ROWS]], name) for at in range(0, len(rows), _COPIED_ROWS)]
    return np.concatenate([np.empty(0, bool), *parts])


class _RowFile:
    """A .npy file whose rows are written in any order, without mapping it."""

    def __init__(self, path: Path, rows: int, dimension: int, dtype: Dtype) -> None:
        self._path, self._shape = path, (rows, dimension)
        self._dtype = np.dtype(dtype).newbyteorder("<")

    def __enter__(self) -> _RowFile:
        self._file = self._path.open("wb")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()
        self._start = self._file.tell()
        self._written = 0
        return self

    def write(self, rows: Rows, vectors: Vectors) -> None:
        """Write `vectors` into `rows`; neighbours go out together."""
        if vectors.shape[1] != self._shape[1]:
            raise BlockError(f"vectors of {vectors.shape[1]} dimensions among others of {self._shape[1]}")
        width = self._dtype.itemsize * self._shape[1]
        bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for low, high in pairwise(bounds):
            data = np.ascontiguousarray(vectors[low:high], self._dtype).tobytes()
            at = self._start + int(rows[low]) * width if high > low else 0
            while data:
                sent = os.pwrite(self._file.fileno(), data, at)
                data, at = data[sent:], at + sent
        self._written += len(rows)

    def __exit__(self, kind: object, *_: object) -> None:
        self._file.close()
        if kind is None and self._written != self._shape[0]:
            raise BlockError(f"{self._written} vectors were written for {self._shape[0]} items")


def _copied(known: Rows, source: Path | None) -> Iterable[tuple[Rows, Vectors]]:
    """Yield the rows whose vectors are known, with the vectors, a few thousand at a time."""
    rows = np.flatnonzero(known >= 0) if source is not None else np.empty(0, np.int64)
    for start in range(0, len(rows), _COPIED_ROWS):
        part = rows[start : start + _COPIED_ROWS]
        # Mapped anew for each part: pages that were read do not stay with this process.
        before = open_vectors(source, whole_bytes=0)
        yield part, np.asarray(before[known[part]], np.float32)


def _dimension(source: Path | None, blocks: Sequence[Block], folder: BlockFolder) -> int:
    if blocks:
        return int(folder.read(blocks[0]).shape[1])
    if source is None:
        return 0
    return int(open_vectors(source, whole_bytes=0).shape[1])
