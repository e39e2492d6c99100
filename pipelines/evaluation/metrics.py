"""Metrics of one ranked list against the items that were taken, and of all lists together.

Pure numpy. Called by `evaluate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

METRICS = ("hr", "ndcg", "mrr", "recall", "precision")
"""Order of the values of `score_list`."""


def score_list(recommended: Sequence[str], targets: Collection[str], k: int) -> npt.NDArray[np.float64]:
    """Return hit rate, NDCG, reciprocal rank, recall and precision at `k`, each 0..1, in the order of `METRICS`.

    NDCG is normalised by the best list possible: min(k, number of targets) hits at the top.
    """
    hits = np.fromiter((i in targets for i in recommended[:k]), bool, min(k, len(recommended)))
    found = int(hits.sum())
    if not found:
        return np.zeros(len(METRICS))
    ranks = np.flatnonzero(hits) + 1
    ideal = float((1 / np.log2(np.arange(2, 2 + min(k, len(targets))))).sum())
    gain = float((1 / np.log2(ranks + 1)).sum())
    return np.array([1.0, gain / ideal, 1 / ranks[0], found / len(targets), found / k])


def coverage(lists: Sequence[Sequence[str]], items: int) -> float:
    """Return the share of a catalog of `items` that comes up in any list."""
    return len({i for one in lists for i in one}) / items if items else 0.0


def novelty(lists: Sequence[Sequence[str]], taken: Mapping[str, int]) -> float:
    """Return the mean self-information in bits of the recommended items, by how often each was `taken`.

    An item that was never taken counts as taken half a time.
    """
    total = sum(taken.values())
    counts = Counter(i for one in lists for i in one)
    shown = sum(counts.values())
    if not shown or not total:
        return 0.0
    return sum(n * -np.log2(max(0.5, taken.get(i, 0)) / total) for i, n in counts.items()) / shown
