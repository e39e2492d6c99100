"""Sequential co-visitation: which items followed which, within a few steps of the same user.

The strongest real-time signal and free at request time. Called by `behaviour.fit_behaviour` and by the
sequential source. Knows nothing of users at request time.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions


@dataclass(frozen=True, slots=True)
class Transitions:
    """A square CSR matrix: row `a` holds the weights of the items that followed `a`; columns ascend.

    `offsets` int64[items+1], `columns` int32, `weights` float32 in 0..1.
    """

    offsets: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def weight(self, row_from: int, row_to: int) -> float:
        """Return how strongly `row_to` followed `row_from`; 0.0 where it never did."""
        start, end = int(self.offsets[row_from]), int(self.offsets[row_from + 1])
        # Evidence asks hundreds of times a list: `np.searchsorted` copies the slice to the type of a Python int first.
        at = bisect_left(self.columns, row_to, start, end)
        return float(self.weights[at]) if at < end and self.columns[at] == row_to else 0.0

    def followers(
        self, rows: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return what follows `rows` as (columns, contributions) before summing: a column may come up repeatedly."""
        spans = [(int(self.offsets[r]), int(self.offsets[r + 1])) for r in rows]
        columns = [self.columns[a:b] for a, b in spans]
        values = [self.weights[a:b] * w for (a, b), w in zip(spans, weights, strict=True)]
        if not spans:
            return np.empty(0, np.int32), np.empty(0, np.float32)
        return np.concatenate(columns), np.concatenate(values)

    def save(self, folder: Path) -> None:
        """Write three npy files into `folder`."""
        for name in ("offsets", "columns", "weights"):
            np.save(folder / f"transition_{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> Transitions:
        """Map what `save` wrote."""
        return cls(
            # Plain arrays over the mapping: every index into a `memmap` makes a new one, at ten times the cost.
            *(
                np.asarray(np.load(folder / f"transition_{name}.npy", mmap_mode="r", allow_pickle=False))
                for name in ("offsets", "columns", "weights")
            )
        )


def fit_transitions(
    interactions: Interactions,
    *,
    steps: int = 10,
    shrinkage: float = 50.0,
    distance_power: float = 0.5,
    backward: float = 0.5,
) -> Transitions:
    """Count transitions within `steps` events of one user, weighted distance^-`distance_power`, rows normalised.

    A transition also counts `backward` times in the other direction: the order of two events close together
    is half chance.

    A row is divided by its sum plus `shrinkage`, so that an item seen twice does not promise much.
    """
    from scipy.sparse import coo_array

    size = interactions.n_items
    total = coo_array((size, size), dtype=np.float32).tocsr()
    for distance in range(1, steps + 1):
        same = interactions.users[distance:] == interactions.users[:-distance]
        before, after = interactions.rows[:-distance][same], interactions.rows[distance:][same]
        moved = before != after
        weight = np.full(int(moved.sum()), distance**-distance_power, np.float32)
        total = total + coo_array((weight, (before[moved], after[moved])), shape=(size, size)).tocsr()
    total = (total + backward * total.T).tocsr()
    total.sort_indices()
    mass = np.asarray(total.sum(axis=1)).ravel()
    weights = total.data / np.repeat(mass + shrinkage, np.diff(total.indptr))
    return Transitions(total.indptr.astype(np.int64), total.indices.astype(np.int32), weights.astype(np.float32))
