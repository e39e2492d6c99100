"""User clusters: people grouped by what they take, and what each group takes most.

k-means (FAISS, seeded) over profile vectors: the unit mean of the content vectors of a user's items. Content, so that
somebody with one event, a few seed items or a search text can be placed by the very same kind of vector. Two uses:
the popularity of the nearest group is a prior for users with next to no history, and the groups are a report.
Fitted by `behaviour.fit_behaviour`; read by the cluster source and by `raycommend clusters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions
from models.opinion import Rows, Scores

DEPTH = 1_000
"""How many items of a cluster are kept, most taken first."""
_COLUMNS = ("centroids", "sizes", "rows", "takers")
_BLOCK = 65_536


@dataclass(frozen=True, slots=True)
class UserClusters:
    """k clusters, largest first; k is 0 where there were too few users.

    `centroids` float32[k, dim] of unit length; `sizes` int64[k] users. Row `c` of `rows` int32[k, depth] holds the
    items that most of the cluster's users took, best first, padded with -1; `takers` int32[k, depth] says how many did.
    """

    centroids: Scores
    sizes: npt.NDArray[np.int64]
    rows: Rows
    takers: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.sizes)

    def nearest(self, vector: Scores) -> int:
        """Return the cluster whose centroid has the largest inner product with `vector`; there must be clusters."""
        return int(np.argmax(self.centroids @ vector))

    def items(self, cluster: int) -> tuple[Rows, Scores]:
        """Return the items of a cluster, and which share of its users took each."""
        kept = self.rows[cluster] >= 0
        share = self.takers[cluster][kept] / max(1, int(self.sizes[cluster]))
        return np.asarray(self.rows[cluster][kept]), share.astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write one npy file per column into `folder`."""
        for name in _COLUMNS:
            np.save(folder / f"cluster_{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> UserClusters:
        """Map what `save` wrote."""
        return cls(*(np.load(folder / f"cluster_{n}.npy", mmap_mode="r", allow_pickle=False) for n in _COLUMNS))

    @classmethod
    def none(cls, dimension: int = 0) -> UserClusters:
        """No clusters."""
        empty = np.empty((0, 0), np.int32)
        return cls(np.empty((0, dimension), np.float32), np.empty(0, np.int64), empty, empty)


def fit_clusters(
    interactions: Interactions,
    vectors: Scores,
    *,
    clusters: int = 16,
    minimum_users: int = 20,
    rounds: int = 25,
    depth: int = DEPTH,
    seed: int = 0,
) -> UserClusters:
    """Group the users of a log by the mean of their items' `vectors` float32[items, dim] of unit length.

    There are fewer clusters than asked for where they would hold less than `minimum_users` users on average, and a
    cluster that ends up empty is left out.
    """
    count = min(clusters, interactions.n_users // max(1, minimum_users))
    if count < 1:
        return UserClusters.none(vectors.shape[1])
    pairs = _pairs(interactions)
    profiles = _profiles(pairs, vectors)
    centroids = _k_means(profiles, count, rounds=rounds, seed=seed)
    member = np.concatenate(
        [np.argmax(profiles[at : at + _BLOCK] @ centroids.T, axis=1) for at in range(0, len(profiles), _BLOCK)]
    )
    sizes = np.bincount(member, minlength=count)
    order = np.argsort(-sizes, kind="stable")[: int((sizes > 0).sum())]
    takers = [_takers(pairs, member == c) for c in order]
    rows = np.full((len(order), min(depth, interactions.n_items)), -1, np.int32)
    counts = np.zeros(rows.shape, np.int32)
    for at, of in enumerate(takers):
        best = np.lexsort((np.arange(len(of)), -of))[: rows.shape[1]]
        best = best[of[best] > 0]
        rows[at, : len(best)], counts[at, : len(best)] = best, of[best]
    return UserClusters(np.ascontiguousarray(centroids[order]), sizes[order].astype(np.int64), rows, counts)


def _pairs(interactions: Interactions) -> Any:
    """Return users × items as scipy CSR, 1 where the user took the item."""
    from models.behaviour.ease import user_item_matrix

    return user_item_matrix(interactions)


def _profiles(pairs: Any, vectors: Scores) -> Scores:
    """Return each user's unit mean vector, float32[users, dim]."""
    profiles = np.asarray(pairs @ np.asarray(vectors, np.float32), np.float32)
    lengths = np.linalg.norm(profiles, axis=1, keepdims=True)
    return np.ascontiguousarray(profiles / np.where(lengths > 0, lengths, 1.0), np.float32)


def _k_means(profiles: Scores, count: int, *, rounds: int, seed: int) -> Scores:
    """Return unit centroids float32[count, dim]."""
    import faiss

    means = faiss.Kmeans(
        profiles.shape[1], count, niter=rounds, seed=seed + 1, spherical=True, min_points_per_centroid=1
    )
    means.train(profiles)
    return np.asarray(means.centroids, np.float32)


def _takers(pairs: Any, members: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return how many of `members` took each item."""
    return np.bincount(pairs[np.flatnonzero(members)].indices, minlength=pairs.shape[1])
