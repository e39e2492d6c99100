"""The selector: the only place that orders candidates and cuts the list to k.

Non-finite scores sink, ties are broken by item id, `diversity` trades relevance against similarity with maximal
marginal relevance (Carbonell and Goldstein, 1998), and caps bound how many items share an attribute. Knows nothing of
Ray, stores or HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Labels = Mapping[str, tuple[str, ...]]


def order(scores: npt.NDArray[np.float32], item_ids: list[str]) -> Positions:
    """Return positions by descending score; non-finite scores last; equal scores by item id."""
    finite = np.where(np.isfinite(scores), scores, -np.inf)
    by_id = np.argsort(np.asarray(item_ids, dtype=object), kind="stable")
    return by_id[np.argsort(-finite[by_id], kind="stable")]


def capped(ranked: Positions, labels: Sequence[Labels], k: int, *, caps: Mapping[str, int]) -> Positions:
    """Pick k of `ranked` in order, passing over items of which an attribute's value has been picked often enough.

    `labels[i]` are the attributes of the i-th of `ranked`; `caps` is the most per value, by attribute. What was passed
    over fills the list where it would stay short otherwise: a cap varies a list, it does not empty it.
    """
    picked: list[int] = []
    passed: list[int] = []
    counts: Counter[tuple[str, str]] = Counter()
    for position, own in zip(ranked.tolist(), labels, strict=True):
        if len(picked) == k:
            break
        values = [(name, value) for name in caps for value in own.get(name, ())]
        if any(counts[value] >= caps[value[0]] for value in values):
            passed.append(position)
        else:
            counts.update(values)
            picked.append(position)
    return np.asarray([*picked, *passed][:k], dtype=np.int64)


def diversify(
    ranked: Positions, scores: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int, *, diversity: float
) -> Positions:
    """Pick k of `ranked` greedily by (1 - diversity) × relevance - diversity × closeness to what is picked.

    `vectors` are unit vectors aligned with `scores`. Relevance is the score scaled to [0, 1] over the pool.
    The first pick is always the best-scored item.
    """
    pool = ranked[: max(50, 5 * k)]
    if diversity <= 0.0 or len(pool) <= 1:
        return ranked[:k]
    relevance = np.where(np.isfinite(scores[pool]), scores[pool], np.nan).astype(np.float64)
    low, high = np.nanmin(relevance, initial=0.0), np.nanmax(relevance, initial=1e-9)
    relevance = np.nan_to_num((relevance - low) / max(high - low, 1e-9), nan=0.0)
    units = vectors[pool]
    closeness = np.zeros(len(pool))
    left = np.ones(len(pool), dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, len(pool))):
        gain = np.where(left, (1 - diversity) * relevance - diversity * closeness, -np.inf)
        best = int(np.argmax(gain)) if chosen else 0
        chosen.append(best)
        left[best] = False
        closeness = np.maximum(closeness, units @ units[best])
    return pool[np.asarray(chosen, dtype=np.int64)]
