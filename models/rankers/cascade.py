"""The order of a cascade: a second ranker reads the best few of the first again.

Cascade ranking after Wang, Lin and Metzler (2011). Knows nothing of rankers. Called by the ranker stage and by what
judges a cascade.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def best_of(scores: Floats, count: int) -> Ints:
    """Return the positions of the `count` highest scores, best first; those that are not finite are not among them."""
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    best: Ints = order[np.isfinite(scores[order])][:count]
    return best


def blended(first: Floats, best: Ints, second: Floats, *, weight: float) -> Floats:
    """Return `first` with the scores at `best` dealt out anew, in the order of both rankers.

    `second` are the other ranker's scores of `best`, same order. Both are scaled to unit variance over `best` and
    weighted with 1 - `weight` and `weight`. The numbers stay those of the first ranker, so the rest keeps its place.
    A second score that is not finite counts as an average one.
    """
    own = first[best]
    mixed = (1.0 - weight) * _scaled(own) + weight * _scaled(second)
    out = first.copy()
    out[best[np.argsort(-mixed, kind="stable")]] = -np.sort(-own)
    return out


def _scaled(scores: Floats) -> npt.NDArray[np.float64]:
    finite = np.isfinite(scores)
    values = np.where(finite, scores, scores[finite].mean() if finite.any() else 0.0).astype(np.float64)
    values -= values.mean() if len(values) else 0.0
    deviation = values.std() if len(values) else 0.0
    return values / deviation if deviation > 1e-9 else values * 0.0
