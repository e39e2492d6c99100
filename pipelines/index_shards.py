"""Building a vector index within a bound on memory: in pieces, one after another or side by side with Ray.

A piece depends on its vectors and the wanted recall alone, so it is the same whoever builds it, and a rerun after
a kill finds the pieces that were finished. Called by the build; `models.shards` searches what this makes.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from models.artifacts import Artifact, ArtifactStore
from models.bundle import EMBEDDINGS_FILE
from models.index import INDEX_FILE, write_faiss
from models.progress import Progress, silent
from models.shards import Shard, plan, write_shards
from models.vectors import open_vectors
from pipelines.errors import BuildError

FOLDER = "index-pieces"
FORMAT = 1
"""Of a piece; raise it when what builds one changes."""


@dataclass(frozen=True, slots=True)
class PieceWork:
    """One piece to build: `ref` names the embeddings, `key` the finished piece."""

    ref: str
    shard: Shard
    recall: float

    @property
    def key(self) -> str:
        """Name of the piece, from what it is made of."""
        named = f"{FORMAT}\n{self.ref}\n{self.shard.start}\n{self.shard.stop}\n{self.recall!r}"
        return hashlib.sha256(named.encode()).hexdigest()[:32]


class PieceRunner(Protocol):
    """Builds pieces. `InlinePieces` does it here, `RayPieces` with tasks of Ray."""

    def __call__(self, artifacts: ArtifactStore, work: Sequence[PieceWork]) -> Iterable[str]:
        """Build every piece into the artifact store and yield its key, in any order. Finished ones stay finished."""
        ...


class InlinePieces:
    """Builds pieces in this process, one after another."""

    def __call__(self, artifacts: ArtifactStore, work: Sequence[PieceWork]) -> Iterable[str]:
        """See `PieceRunner`."""
        for one in work:
            build_piece(artifacts, one)
            yield one.key


@dataclass(frozen=True, slots=True)
class RayPieces:
    """Builds pieces as tasks of the Ray this process is connected to; `place()` opens the artifact store on a node."""

    place: Callable[[], ArtifactStore]
    workers: int
    """Most tasks at the same time, which share the memory."""
    cpus: float
    """That Ray sets aside for a task, which waits until they are free."""

    def __call__(self, artifacts: ArtifactStore, work: Sequence[PieceWork]) -> Iterable[str]:
        """See `PieceRunner`. A task that is lost with its node is repeated by Ray."""
        import ray

        task = ray.remote(num_cpus=self.cpus, max_retries=3)(_build_there)
        waiting, running = list(work), {}
        while waiting or running:
            # Only so many at once: together they may take the memory of the settings, and no more.
            while waiting and len(running) < self.workers:
                one = waiting.pop(0)
                running[task.remote(self.place, one)] = one.key
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            ray.get(done)
            yield running.pop(done)


def _build_there(place: Callable[[], ArtifactStore], work: PieceWork) -> None:
    build_piece(place(), work)


def cut(rows: int, dimension: int, *, memory_bytes: int, at_once: int, at_least: int = 1) -> list[Shard]:
    """Return the pieces that an index is built in: one where that fits, else such that `at_once` fit at a time.

    There are `at_least` so many. Raises BuildError when the bound is too small for any piece.
    """

    def planned(memory: int) -> list[Shard]:
        return plan(rows, dimension, memory_bytes=memory, at_least=at_least)

    try:
        whole = planned(memory_bytes)
        return whole if len(whole) == 1 else planned(memory_bytes // at_once)
    except ValueError as error:
        raise BuildError(
            f"{error}, with {at_once} pieces at the same time: raise pipelines.index_memory_bytes "
            f"(now {memory_bytes}), or lower pipelines.embedding.workers"
        ) from error


def build_index(
    artifacts: ArtifactStore,
    embeddings: Artifact,
    to: Path,
    *,
    recall: float,
    memory_bytes: int,
    at_once: int = 1,
    at_least: int = 1,
    runner: PieceRunner | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Build the index of `embeddings` into the folder `to`, with at most about `memory_bytes` for vectors and index.

    Returns facts for the manifest. In one piece where that fits, which is faster to search, and `at_least` is 1; else
    in pieces of which `at_once` can be built at the same time, however many the runner builds. Raises BuildError when
    the bound is too small for any piece, or a finished piece is damaged.
    """
    runner = runner or InlinePieces()
    vectors = open_vectors(embeddings.path / EMBEDDINGS_FILE, whole_bytes=0)
    rows, dimension = vectors.shape
    size = {"items": rows, "dimension": dimension}
    shards = cut(rows, dimension, memory_bytes=memory_bytes, at_once=at_once, at_least=at_least)
    if len(shards) == 1:
        return {**_build(vectors, to, INDEX_FILE, recall), **size}
    work = [PieceWork(embeddings.ref, shard, recall) for shard in shards]
    pieces = Pieces(artifacts)
    left = [one for one in work if not pieces.holds(one.key)]
    progress("index", len(work) - len(left), len(work))
    for done, _ in enumerate(runner(artifacts, left), start=len(work) - len(left) + 1):
        progress("index", done, len(work))
    facts = [pieces.take(one.key, to / one.shard.name) for one in work]
    write_shards(shards, to)
    found = {"kind": facts[0]["kind"], "factory": facts[0]["factory"], "shards": len(shards)}
    if "recall" in facts[0]:
        found["recall"] = min(float(f["recall"]) for f in facts)
    return {**found, "pieces": facts, **size}


def forget_pieces(artifacts: ArtifactStore, embeddings: Artifact, facts: Mapping[str, Any], *, recall: float) -> None:
    """Take the finished pieces away, once the index is an artifact."""
    pieces = Pieces(artifacts)
    for one in facts.get("pieces", ()):
        shard = Shard("", int(one["start"]), int(one["stop"]))
        pieces.remove(PieceWork(embeddings.ref, shard, recall).key)


def build_piece(artifacts: ArtifactStore, work: PieceWork) -> None:
    """Build one piece from its own node's copy of the embeddings, and keep it in the artifact store."""
    folder = artifacts.get(work.ref).path
    vectors = open_vectors(folder / EMBEDDINGS_FILE, whole_bytes=0)
    with tempfile.TemporaryDirectory(prefix="raycommend-piece-") as made:
        facts = _build(vectors[work.shard.start : work.shard.stop], Path(made), INDEX_FILE, work.recall)
        facts |= {"start": work.shard.start, "stop": work.shard.stop}
        Pieces(artifacts).keep(work.key, Path(made) / INDEX_FILE, facts)


def _build(vectors: Any, to: Path, name: str, recall: float) -> dict[str, Any]:
    from models.index_build import build_faiss

    built = build_faiss(np.ascontiguousarray(vectors, dtype=np.float32), recall=recall)
    write_faiss(built.index, to, name=name)
    return dict(built.facts)


class Pieces:
    """Finished pieces beside the artifacts: a file, and its facts, which are written last and with its sha256."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._fs, root = artifacts.place
        self._root = f"{root}/{FOLDER}"

    def keep(self, key: str, file: Path, facts: dict[str, Any]) -> None:
        """Keep a piece. Effect: it is there whole or not at all; the same one twice is harmless."""
        from models.artifacts import sha256_of

        self._fs.makedirs(self._root, exist_ok=True)
        partial = f"{self._root}/.{key}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
        facts = {**facts, "sha256": sha256_of(file)}
        try:
            self._fs.put_file(str(file), partial)
            self._fs.mv(partial, self._path(key))
            with self._fs.open(partial, "w") as out:
                json.dump(facts, out)
            self._fs.mv(partial, self._path(key, "json"))
        finally:
            if self._fs.exists(partial):
                self._fs.rm(partial)

    def holds(self, key: str) -> bool:
        """Whether a piece was finished; whether it is intact shows when it is taken."""
        return bool(self._fs.exists(self._path(key, "json")) and self._fs.exists(self._path(key)))

    def take(self, key: str, file: Path) -> dict[str, Any]:
        """Copy a piece to `file` and return its facts. Raises BuildError, and takes it away, when it is damaged."""
        from models.artifacts import sha256_of

        try:
            with self._fs.open(self._path(key, "json"), "r") as source:
                facts: dict[str, Any] = json.load(source)
            self._fs.get_file(self._path(key), str(file))
            intact = sha256_of(file) == facts.pop("sha256")
        except (OSError, ValueError, KeyError):
            intact, facts = False, {}
        if not intact:
            self.remove(key)
            raise BuildError(f"index piece {key}: damaged; it was taken away, run this again")
        return facts

    def remove(self, key: str) -> None:
        """Take a piece away."""
        for path in (self._path(key, "json"), self._path(key)):
            if self._fs.exists(path):
                self._fs.rm(path)

    def _path(self, key: str, suffix: str = "faiss") -> str:
        return f"{self._root}/{key}.{suffix}"
