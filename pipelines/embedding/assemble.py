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
from models.progress import Progress, silent
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

    def inputs(self, catalog: str) -> dict[str, Any]:
        """Return what the result depends on, for the manifest."""
        return {"catalog": catalog, "encoder": self.spec.uri, "max_tokens": self.spec.max_tokens}

    def embed(self, catalog: Artifact, to: Path, progress: Progress = silent) -> Mapping[str, Any]:
        """Write the vectors of `catalog` and their contents into the folder `to`; return facts for the manifest."""
        items = ItemCatalog(catalog.path)
        contents = catalog_contents(items)
        known, source = self._known(contents)
        wanted = np.flatnonzero(known < 0).astype(np.int32)
        blocks = cut(contents, items.hashes, wanted, self.spec)
        folder = BlockFolder(self.artifacts)
        self._compute(catalog, blocks, folder, progress)
        dimension = _dimension(source, blocks, folder)
        with _RowFile(to / EMBEDDINGS_FILE, len(items), dimension) as file:
            for rows, vectors in _copied(known, source):
                file.write(rows, vectors)
            for block in blocks:
                file.write(block.rows.astype(np.int64), folder.read(block))
        np.save(to / CONTENT_FILE, contents, allow_pickle=False)
        return {"items": len(items), "dimension": dimension, "space": self.spec.space, "embedded": len(wanted)}

    def forget(self, catalog: Artifact) -> None:
        """Take the finished blocks of `catalog` away, once its embeddings are an artifact."""
        items = ItemCatalog(catalog.path)
        contents = catalog_contents(items)
        known, _ = self._known(contents)
        wanted = np.flatnonzero(known < 0).astype(np.int32)
        BlockFolder(self.artifacts).remove(cut(contents, items.hashes, wanted, self.spec))

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


class _RowFile:
    """A float32 .npy file whose rows are written in any order, without mapping it."""

    def __init__(self, path: Path, rows: int, dimension: int) -> None:
        self._path, self._shape = path, (rows, dimension)

    def __enter__(self) -> _RowFile:
        self._file = self._path.open("wb")
        header = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()
        self._start = self._file.tell()
        self._written = 0
        return self

    def write(self, rows: Rows, vectors: Vectors) -> None:
        """Write `vectors` into `rows`; neighbours go out together."""
        if vectors.shape[1] != self._shape[1]:
            raise BlockError(f"vectors of {vectors.shape[1]} dimensions among others of {self._shape[1]}")
        width = 4 * self._shape[1]
        bounds = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for low, high in pairwise(bounds):
            data = np.ascontiguousarray(vectors[low:high], "<f4").tobytes()
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
    rows = np.flatnonzero(known >= 0)
    for start in range(0, len(rows), _COPIED_ROWS):
        part = rows[start : start + _COPIED_ROWS]
        # Mapped anew for each part: pages that were read do not stay with this process.
        before = np.load(str(source), mmap_mode="r", allow_pickle=False)
        yield part, np.asarray(before[known[part]], np.float32)


def _dimension(source: Path | None, blocks: Sequence[Block], folder: BlockFolder) -> int:
    if blocks:
        return int(folder.read(blocks[0]).shape[1])
    if source is None:
        return 0
    return int(np.load(str(source), mmap_mode="r", allow_pickle=False).shape[1])
