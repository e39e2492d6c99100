"""The table of id vectors while it is learned: one shard in this process, or several held by Ray actors.

The table cuts what it is asked by shard, asks all of them at once and joins the answers, so a step costs one pull and
one push per shard, and no process ever holds more than its shard, or the rows of a batch. Where the shards lie is
behind a port; the numbers are the same for both. Called by the training of the compressed ranker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.rankers.id_vectors import BLOCK, IdVectors, bounds_of
from pipelines.errors import TrainingError
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.id_shard import IdShard

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Shards(Protocol):
    """Where the shards of a table lie."""

    def ask(self, what: str, calls: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """Call the method `what` of the shards named, all at once, and return their answers in that order."""
        ...

    def close(self) -> None:
        """Let the shards go."""
        ...


class ShardsHere:
    """Shards in this process."""

    def __init__(self, counts: Sequence[int], dim: int) -> None:
        self._all = [IdShard(count, dim) for count in counts]

    def ask(self, what: str, calls: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """See `Shards.ask`."""
        return [getattr(self._all[number], what)(*given) for number, given in calls.items()]

    def close(self) -> None:
        """See `Shards.close`."""
        self._all.clear()


class ShardActors:
    """Each shard in an actor of the Ray this process is connected to, over the nodes where there are several.

    They reserve no CPU: a shard is idle but for a moment of each step, and must fit beside what serves.
    """

    def __init__(self, counts: Sequence[int], dim: int) -> None:
        """Start one actor per count. Raises TrainingError where there is no Ray."""
        import ray

        if not ray.is_initialized():
            raise TrainingError(
                f"pipelines.training.id_shards = {len(counts)} needs Ray: run it through `raycommend train`, or set 1"
            )
        actor = ray.remote(num_cpus=0, scheduling_strategy="SPREAD")(IdShard)
        self._all = [actor.remote(count, dim) for count in counts]

    def ask(self, what: str, calls: Mapping[int, tuple[Any, ...]]) -> list[Any]:
        """See `Shards.ask`. Raises TrainingError where a shard is lost or fails."""
        import ray
        from ray.exceptions import RayError

        try:
            asked = [getattr(self._all[number], what).remote(*given) for number, given in calls.items()]
            return list(ray.get(asked))
        except RayError as error:
            cause = getattr(error, "cause", None)
            said = type(error).__name__ if cause is None else f"{type(cause).__name__}: {cause}"
            raise TrainingError(
                f"a shard of id vectors failed ({said}): run it again, it goes on where it was"
            ) from error

    def close(self) -> None:
        """See `Shards.close`."""
        import ray

        for actor in self._all:
            ray.kill(actor)


class IdTable:
    """`IdVectors` that are learned. Slots of a call ascend, none but 0 is there twice; what is said of 0 is dropped."""

    def __init__(self, shards: Shards, bounds: Sequence[int], dim: int) -> None:
        """`shards` hold the rows between each two of `bounds`."""
        self.bounds, self._shards, self._dim = bounds, shards, dim

    def rows(self, slots: Ints) -> Floats:
        """See `IdVectors.rows`."""
        found = self._shards.ask("rows", {n: (slots[at] - self.bounds[n],) for n, at in self._cut(slots).items()})
        return np.concatenate([np.zeros((np.count_nonzero(slots == 0), self._dim), np.float32), *found])

    def push(self, slots: Ints, gradients: Floats, rate: float) -> None:
        """Take a step of size `rate` down `gradients` float32[slots, dim]; see `IdShard` for how."""
        cut = self._cut(slots).items()
        self._shards.ask("push", {n: (slots[at] - self.bounds[n], gradients[at], rate) for n, at in cut})

    def take_over(self, vectors: IdVectors, slots: Ints) -> None:
        """Give each slot from 1 on, in their order, the vector that `vectors` has for `slots`; none for 0.

        One block after another, so that nobody holds them all. `slots` ascend but for zeros.
        """
        known = np.flatnonzero(slots)
        for start in range(0, len(known), BLOCK):
            block = known[start : start + BLOCK]
            rows = vectors.rows(slots[block])
            cut = self._cut(block + 1).items()
            self._shards.ask("fill", {n: (block[at] + 1 - self.bounds[n], rows[at]) for n, at in cut})

    def clear(self) -> None:
        """Begin again with zeros."""
        self._all("clear")

    def keep(self) -> None:
        """Remember every row as it is, where it lies."""
        self._all("keep")

    def restore(self) -> None:
        """Make every row what it was at `keep`."""
        self._all("restore")

    def write(self, checkpoint: Checkpoint, name: str) -> None:
        """Let every shard keep itself in the checkpoint's folder, which all nodes that hold one must share."""
        self._shards.ask("write", self._files(checkpoint, name))

    def resume(self, checkpoint: Checkpoint, name: str) -> bool:
        """Go on from what `write` kept; False, and nothing changed, where a shard cannot read its part."""
        if not all(self._shards.ask("find", self._files(checkpoint, name))):
            return False
        self._all("resume")
        return True

    def _all(self, what: str) -> None:
        self._shards.ask(what, {number: () for number in range(len(self.bounds) - 1)})

    def _files(self, checkpoint: Checkpoint, name: str) -> dict[int, tuple[Any, ...]]:
        # An actor has another current folder, and another number of shards finds nothing.
        folder, count = checkpoint.folder.resolve(), len(self.bounds) - 1
        return {number: (folder, f"{name}{number} of {count}") for number in range(count)}

    def _cut(self, slots: Ints) -> dict[int, slice]:
        """Return which part of `slots` belongs to which shard, of shards that have any."""
        edges = np.searchsorted(slots, self.bounds).tolist()
        return {number: slice(*run) for number, run in enumerate(pairwise(edges)) if run[0] < run[1]}


@contextmanager
def opened(count: int, dim: int, shards: int) -> Iterator[IdTable | None]:
    """Lend a table of `count` zero vectors in so many shards, None for none; its memory is free again afterwards.

    Raises TrainingError where several shards are asked for and there is no Ray to hold them.
    """
    if not count:
        yield None
        return
    bounds = bounds_of(count, shards)
    counts = [end - first for first, end in pairwise(bounds)]
    held: Shards = ShardsHere(counts, dim) if shards == 1 else ShardActors(counts, dim)
    try:
        yield IdTable(held, bounds, dim)
    finally:
        held.close()
