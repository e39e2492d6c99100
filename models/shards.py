"""One index in several pieces: each over a range of rows, on a device of its own, scattered to and gathered here.

FAISS has shards of its own, which ignore filters without a word; here every shard is asked with its part of the
mask, so what holds for one index holds for all of them: exact shards give what one exact index gives.
Pieces also bound what building takes: one is built at a time. Called by `models.index`, which loads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.index_port import EXACT_BELOW, Hits, Mask, VectorIndex, Vectors

SHARDS_FILE = "shards.json"
BUILD_COPIES = 3
"""Copies of its vectors that building a piece takes at most: those read, those clusters are learned from, the index."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows `start` to `stop` (excluded), in the file `name`."""

    name: str
    start: int
    stop: int


class ShardedIndex:
    """A `VectorIndex` over shards that cover all rows in order."""

    def __init__(self, shards: Sequence[tuple[int, int, VectorIndex]], *, exact: VectorIndex, threads: int = 1) -> None:
        """`shards` are (first row, row after the last, index of those rows, numbered from 0).

        `exact` searches all rows and answers rare filters: what is rare in all may be common in one shard. With more
        than one of `threads` they are asked at the same time, which pays where each has a device of its own.
        Raises ValueError when they leave rows out.
        """
        ends = [0, *(stop for _, stop, _ in shards)]
        if not shards or any(start != before for (start, _, _), before in zip(shards, ends, strict=False)):
            raise ValueError("the shards do not cover the rows in order")
        self._shards, self._exact, self._rows = tuple(shards), exact, ends[-1]
        self._pool = ThreadPoolExecutor(threads, "shard") if threads > 1 else None

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`."""
        if allowed is not None and np.count_nonzero(allowed) < EXACT_BELOW * self._rows:
            return self._exact.search(query, n, allowed=allowed)

        each = map if self._pool is None else self._pool.map
        return search_pieces(self._shards, query, n, allowed, each=each)


def search_pieces(
    pieces: Sequence[tuple[int, int, VectorIndex]],
    query: Vectors,
    n: int,
    allowed: Mask | None,
    *,
    first: int = 0,
    each: Callable[..., Iterable[Hits]] = map,
) -> Hits:
    """Ask every piece with its part of the mask, whose first row is row `first` of the catalog; gather their answers.

    `pieces` are (first row, row after the last, index). `each(function, pieces)` calls for all of them, like `map`.
    """

    def ask(piece: tuple[int, int, VectorIndex]) -> Hits:
        start, stop, index = piece
        part = None if allowed is None else allowed[start - first : stop - first]
        rows, scores = index.search(query, n, allowed=part)
        return (rows + start).astype(np.int32), scores

    return merged(each(ask, pieces), n)


def merged(found: Iterable[Hits], n: int) -> Hits:
    """Return the `n` best of several answers about different rows, best first, ties by row."""
    answers = list(found)
    rows = np.concatenate([np.empty(0, np.int32), *(r for r, _ in answers)])
    scores = np.concatenate([np.empty(0, np.float32), *(s for _, s in answers)])
    best = np.lexsort((rows, -scores))[: max(0, n)]
    return rows[best], scores[best]


def plan(rows: int, dimension: int, *, memory_bytes: int, at_least: int = 1) -> list[Shard]:
    """Cut `rows` into as few pieces of about equal size as can each be built within `memory_bytes`.

    There are `at_least` so many, where there are rows enough. Raises ValueError when not even a thousand rows can.
    """
    most = memory_bytes // (BUILD_COPIES * 4 * max(1, dimension))
    if most < min(rows, 1000):
        raise ValueError(f"{memory_bytes} bytes are not enough to build an index of {dimension} dimensions")
    count = max(1, min(at_least, rows), -(-rows // max(1, most)))
    bounds = [rows * n // count for n in range(count + 1)]
    return [Shard(f"index-{n:04d}.faiss", bounds[n], bounds[n + 1]) for n in range(count)]


def write_shards(shards: Sequence[Shard], folder: Path) -> None:
    """Say in `folder` which shards its files are."""
    listed = [{"file": s.name, "start": s.start, "stop": s.stop} for s in shards]
    (folder / SHARDS_FILE).write_text(json.dumps({"shards": listed}), "utf-8")


def read_shards(folder: Path, rows: int) -> list[Shard]:
    """Return what `write_shards` wrote, empty where an index is in one piece.

    Raises ValueError when the file is damaged or does not cover `rows`.
    """
    file = folder / SHARDS_FILE
    if not file.is_file():
        return []
    try:
        read: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
        shards = [Shard(str(s["file"]), int(s["start"]), int(s["stop"])) for s in read["shards"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{SHARDS_FILE}: not a list of shards") from error
    inside = all(Path(s.name).name == s.name and s.start < s.stop for s in shards)
    starts = [s.start for s in shards]
    if not inside or starts != [0, *(s.stop for s in shards[:-1])] or not shards or shards[-1].stop != rows:
        raise ValueError(f"{SHARDS_FILE}: its shards do not cover {rows} rows in order")
    return shards


def load_shards(
    shards: Sequence[Shard],
    vectors: Vectors,
    load: Callable[[Shard, Vectors, int], VectorIndex],
    *,
    exact: VectorIndex,
    devices: int,
) -> ShardedIndex:
    """Return the index of `shards`; `load(shard, its vectors, number of its device)` loads one.

    With several devices each has its own thread: they search at the same time.
    """
    loaded = [(s.start, s.stop, load(s, vectors[s.start : s.stop], n % max(1, devices))) for n, s in enumerate(shards)]
    return ShardedIndex(loaded, exact=exact, threads=min(devices, len(shards)) if devices > 1 else 1)
