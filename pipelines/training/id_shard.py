"""One shard of the table of id vectors while it is learned: its rows, their optimiser state and the copy to go back to.

The optimiser is row-wise Adagrad (Duchi et al. 2011, "Adaptive Subgradient Methods"; one number per row as in Naumov et
al. 2019, "Deep Learning Recommendation Model", DLRM): a row that a step does not name is neither read nor changed, and
its state is four bytes. Every row goes by its own numbers alone, so a table is the same however it is cut.
Rows begin at zero and take memory when they are first written. numpy only: the process of a shard imports no torch.
Called by `id_tables`, in this process or as a Ray actor. Knows nothing of slots or of other shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.training.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_EPSILON = np.float32(1e-8)


class IdShard:
    """Rows 0 to `count` - 1 of a shard. In every call `at` int64[n] names rows, none twice."""

    def __init__(self, count: int, dim: int) -> None:
        """Begin with rows of zeros."""
        self._shape = (count, dim)
        self._found: dict[str, npt.NDArray[Any]] | None = None
        self.clear()

    def clear(self) -> None:
        """Begin again: rows of zeros, nothing learned, nothing kept."""
        self._rows, self._kept = np.zeros(self._shape, np.float32), np.zeros(self._shape, np.float32)
        self._squares = np.zeros(self._shape[0], np.float32)
        self._changed = np.zeros(self._shape[0], np.bool_)

    def rows(self, at: Ints) -> Floats:
        """Return float32[n, dim], a copy."""
        found: Floats = self._rows[at]
        return found

    def fill(self, at: Ints, rows: Floats) -> None:
        """Set rows, as if they had been learned elsewhere."""
        self._rows[at] = rows
        self._changed[at] = True

    def push(self, at: Ints, gradients: Floats, rate: float) -> None:
        """Take one step of size `rate` down `gradients` float32[n, dim]."""
        squares = self._squares[at] + np.square(gradients).mean(axis=1)
        self._squares[at] = squares
        self._rows[at] -= np.float32(rate) * gradients / (np.sqrt(squares) + _EPSILON)[:, None]
        self._changed[at] = True

    def keep(self) -> None:
        """Remember the rows as they are; only those changed since the last time are copied."""
        np.copyto(self._kept, self._rows, where=self._changed[:, None])  # by a mask: no third copy, not for a moment
        self._changed[:] = False

    def restore(self) -> None:
        """Make the rows what they were at `keep`; what was learned of step sizes stays."""
        np.copyto(self._rows, self._kept, where=self._changed[:, None])
        self._changed[:] = False

    def write(self, folder: Path, name: str) -> None:
        """Keep all of it as `name` in the folder of a checkpoint. Effect: durable and whole when this returns."""
        state = {"rows": self._rows, "kept": self._kept, "squares": self._squares, "changed": self._changed}
        Checkpoint(folder).keep_arrays(name, state)

    def find(self, folder: Path, name: str) -> bool:
        """Read what `write` kept and return whether it is there; nothing changes before `resume`."""
        self._found = Checkpoint(folder).arrays(name)
        return self._found is not None

    def resume(self) -> None:
        """Go on from what `find` found."""
        assert self._found is not None
        found, self._found = self._found, None
        self._rows, self._kept = found["rows"], found["kept"]
        self._squares, self._changed = found["squares"], found["changed"]
