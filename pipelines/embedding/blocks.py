"""Blocks: 1,024 items that are embedded together, and the folder that keeps finished ones until the job is done.

A block is named by what it is computed from, so a rerun after a kill finds what is finished and computes the rest, and
the same block always gives the same bits. Called by the embedding job and by its workers.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifacts import ArtifactStore
from models.media.decode import READING
from models.media.layout import Layout, Part
from models.vectors import Dtype
from pipelines.embedding.content import Contents

BLOCK_ROWS = 1024
FOLDER = "embedding-blocks"
UNIT_TOLERANCE = 1e-3
Vectors = npt.NDArray[np.float32]


class BlockError(ValueError):
    """A block cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What decides the vector of an item."""

    uri: str
    max_tokens: int = 128
    batch_size: int = 32
    media: tuple[tuple[str, str, int, float], ...] = ()
    """Other modalities of an item: name, URI of the encoder, dimension, weight."""
    dtype: Dtype = "float32"
    """Numbers that vectors are kept as. The space is the same: what reads vectors of one kind reads the other."""

    @property
    def space(self) -> str:
        """Name of the vector space: vectors of one space may be mixed."""
        more = "".join(f"\n{name} {uri} {size} {weight!r}" for name, uri, size, weight in self.media)
        more += f"\nread {READING}" if self.media else ""
        return hashlib.sha256(f"{self.uri}\n{self.max_tokens}{more}".encode()).hexdigest()[:16]

    def layout(self, dimension: int) -> Layout | None:
        """Return where the modalities lie in vectors of so many dimensions; None for texts alone.

        Raises BlockError when they do not fit.
        """
        parts = tuple(Part(name, size, weight) for name, _, size, weight in self.media)
        text, rest = divmod(dimension - sum(p.dimension for p in parts), 1 + len(parts))
        if parts and (text < 1 or rest):
            raise BlockError(f"vectors of {dimension} dimensions hold no {', '.join(self.modalities)} beside a text")
        return Layout(text, parts) if parts and dimension else None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities beside the text."""
        return tuple(name for name, *_ in self.media)


@dataclass(frozen=True, slots=True)
class Block:
    """`rows` int32[≤ 1024] of the catalog, `contents` uint64[rows, 2]; `key` names the file."""

    key: str
    rows: npt.NDArray[np.int32]
    contents: Contents
    dtype: Dtype = "float32"


def cut(contents: Contents, ids: npt.NDArray[np.uint64], rows: npt.NDArray[np.int32], spec: EncoderSpec) -> list[Block]:
    """Return the blocks of `rows`, by (content hash, id hash).

    The order of the catalog does not matter, so a rerun over the same items finds the same blocks. The key holds the
    batch size too: it may change the last bits of a vector; and the type of numbers.
    """
    order = rows[np.lexsort((ids[rows], contents[rows, 1], contents[rows, 0]))]
    blocks = []
    for start in range(0, len(order), BLOCK_ROWS):
        part = order[start : start + BLOCK_ROWS].astype(np.int32)
        by = f"{spec.space}\n{spec.batch_size}\n" + ("" if spec.dtype == "float32" else f"{spec.dtype}\n")
        named = by.encode() + contents[part].astype("<u8").tobytes()
        blocks.append(Block(hashlib.sha256(named).hexdigest()[:32], part, contents[part], spec.dtype))
    return blocks


class BlockFolder:
    """Finished blocks, one Parquet file each: fixed-size lists of float32 or float16 with checksums of their pages."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._fs, root = artifacts.place
        self._root = f"{root}/{FOLDER}"

    def write(self, block: Block, vectors: Vectors) -> None:
        """Keep the vectors of a block (float32[rows, dim]) as numbers of its type.

        Effect: all or nothing; the same block twice is harmless.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_vectors(vectors, len(block.rows), name=block.key)
        flat = pa.array(np.ascontiguousarray(vectors, block.dtype).reshape(-1))
        table = pa.table(
            {
                "high": block.contents[:, 0],
                "low": block.contents[:, 1],
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        self._fs.makedirs(self._root, exist_ok=True)
        partial = f"{self._root}/.{block.key}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            with self._fs.open(partial, "wb") as file:
                pq.write_table(table, file, compression="none", use_dictionary=False, write_page_checksum=True)
            self._fs.mv(partial, self._path(block.key))
        except BaseException:
            if self._fs.exists(partial):
                self._fs.rm(partial)
            raise

    def read(self, block: Block) -> Vectors:
        """Return float32[rows, dim]. Raises BlockError for a file that is missing, damaged or unlike its name."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with self._fs.open(self._path(block.key), "rb") as file:
                table = pq.read_table(file, page_checksum_verification=True)
            held = np.stack([table["high"].to_numpy(), table["low"].to_numpy()], axis=1)
            column = table["vector"].combine_chunks()
            vectors = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise BlockError(f"block {block.key}: not readable ({type(error).__name__})") from error
        if not np.array_equal(held, block.contents):
            raise BlockError(f"block {block.key}: holds other items than its name says")
        if vectors.dtype != block.dtype:
            raise BlockError(f"block {block.key}: holds {vectors.dtype}, {block.dtype} is wanted")
        vectors = np.asarray(vectors, np.float32)
        check_vectors(vectors, len(block.rows), name=block.key)
        return vectors

    def finished(self, blocks: Sequence[Block]) -> list[bool]:
        """Return for each block whether it can be used; what is damaged is taken away."""
        if not self._fs.exists(self._root):
            return [False] * len(blocks)
        found = []
        for block in blocks:
            there = bool(self._fs.exists(self._path(block.key)))
            if there:
                try:
                    self.read(block)
                except BlockError:
                    self._fs.rm(self._path(block.key))
                    there = False
            found.append(there)
        return found

    def remove(self, blocks: Sequence[Block]) -> None:
        """Take blocks away whose vectors are in an artifact now."""
        for block in blocks:
            if self._fs.exists(self._path(block.key)):
                self._fs.rm(self._path(block.key))

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}.parquet"


def check_vectors(vectors: Any, rows: int, *, name: str) -> None:
    """Refuse vectors that are not float32[rows, dim] of unit length. Raises BlockError."""
    if vectors.ndim != 2 or len(vectors) != rows:
        raise BlockError(f"block {name}: {vectors.shape} vectors for {rows} items")
    if not np.isfinite(vectors).all():
        raise BlockError(f"block {name}: the encoder returned values that are not numbers")
    norms = np.linalg.norm(vectors, axis=1)
    if rows and float(np.abs(norms - 1.0).max()) > UNIT_TOLERANCE:
        raise BlockError(f"block {name}: the encoder returned vectors that are not of unit length")
