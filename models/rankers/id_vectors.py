"""Learned item vectors by slot: how a table is cut into shards, written shard by shard, and read from mapped files.

Slot 0 is every item without a vector and has no row anywhere, so nothing can move it from zero. Slots are ranks of item
hashes, so runs of them are as even as remainders would be, and ascending slots are cut and joined without sorting.
Called by the compressed ranker and its training. Knows nothing of networks or optimisers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.artifacts import sha256_of

BLOCK = 65_536
"""Rows that are on their way at a time, between shards, files and tokens."""
_TENSOR = "rows"

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class IdVectors(Protocol):
    """The vectors of slots 1 to `bounds[-1] - 1`, wherever they lie."""

    @property
    def bounds(self) -> Sequence[int]:
        """The first slot of each shard, and the one after the last."""
        ...

    def rows(self, slots: Ints) -> Floats:
        """Return float32[slots, dim], zero for slot 0. `slots` ascend."""
        ...


def bounds_of(count: int, shards: int) -> list[int]:
    """Return the bounds of `count` vectors cut into so many runs of about equal size, none of them empty."""
    runs = max(1, min(shards, count))
    return [1 + count * at // runs for at in range(runs + 1)]


def write_ids(vectors: IdVectors, dim: int, folder: Path) -> list[dict[str, str]]:
    """Write one file per shard into `folder` and return their names and sha256; no more than a block is held."""
    runs = list(pairwise(vectors.bounds))
    listed = []
    for number, (first, end) in enumerate(runs):
        name = f"ids-{number:05d}-of-{len(runs):05d}.safetensors"
        blocks = (vectors.rows(np.arange(at, min(at + BLOCK, end))) for at in range(first, end, BLOCK))
        listed.append({"file": name, "sha256": _write(folder / name, (end - first, dim), blocks)})
    return listed


def _write(path: Path, shape: tuple[int, int], blocks: Iterable[Floats]) -> str:
    """Write one tensor in the safetensors format, whose library takes whole tensors only; return the sha256."""
    described = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * shape[0] * shape[1]]}
    header = json.dumps({_TENSOR: described}).encode()
    header += b" " * (-len(header) % 8)  # numbers begin at a multiple of eight
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in chain([len(header).to_bytes(8, "little"), header], (b.astype("<f4").tobytes() for b in blocks)):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


class StoredIds:
    """`IdVectors` in the files that `write_ids` wrote, mapped: a page is read when one of its rows is asked for."""

    def __init__(self, folder: Path, listed: Sequence[Mapping[str, str]], count: int, dim: int) -> None:
        """Open `count` vectors. Raises ValueError naming the file that is missing, changed or of another shape."""
        self.bounds, self._dim = bounds_of(count, len(listed)), dim
        if len(listed) != len(self.bounds) - 1:
            raise ValueError(f"{len(listed)} files of id vectors are listed for {count} items")
        self._parts = [
            _mapped(folder / Path(one["file"]).name, one["sha256"], (end - first, dim))
            for one, (first, end) in zip(listed, pairwise(self.bounds), strict=True)
        ]

    def rows(self, slots: Ints) -> Floats:
        """See `IdVectors.rows`; in any order."""
        out = np.zeros((len(slots), self._dim), np.float32)
        for part, (first, end) in zip(self._parts, pairwise(self.bounds), strict=True):
            here = (slots >= first) & (slots < end)
            out[here] = part[slots[here] - first]
        return out


def _mapped(path: Path, sha256: str, shape: tuple[int, int]) -> Floats:
    from safetensors import safe_open

    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if sha256_of(path) != sha256:
        raise ValueError(f"{path.name} is not the file that was written: its sha256 differs")
    with safe_open(str(path), framework="pt") as stored:
        rows: Floats = stored.get_tensor(_TENSOR).numpy()
    if rows.shape != shape:
        raise ValueError(f"{path.name} holds {rows.shape} numbers, expected {shape}")
    return rows


class WholeIds:
    """`IdVectors` in one array, row 0 included: what an artifact from before there were shards holds."""

    def __init__(self, table: Floats) -> None:
        """`table` is float32[1 + vectors, dim]."""
        self.bounds, self._table = (1, len(table)), table

    def rows(self, slots: Ints) -> Floats:
        """See `IdVectors.rows`; in any order."""
        found: Floats = self._table[slots]
        return found
