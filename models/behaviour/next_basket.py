"""Next basket: a ridge regression from what a user had taken before to what they took next, item to item.

EASE asks which items are taken by the same people. A shop asks what comes next, now: every basket of the log is a
row, with the history before it on the left and the basket itself on the right; late baskets count more. Taking an
item again is an answer like any other, or, for discoveries, no answer at all: what people buy again is so much surer
than what they try that a regression on both hardly learns the second. Weights are used like EASE's. Called by
`behaviour.fit_behaviour`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.ease import EaseModel
from models.behaviour.interactions import Interactions
from models.features import RECENT_EVENTS

_DAY_MS = 86_400_000


def fit_next_basket(
    interactions: Interactions,
    *,
    ridge: float = 2.0,
    half_life_days: float | None = 15.0,
    history_half_life_days: float | None = 250.0,
    discoveries: bool = False,
) -> EaseModel:
    """Solve the regression; the weight matrix is dense float32[items, items].

    A basket is what one user took at one time stamp. It counts half after `half_life_days` before the log's end; an
    event in the history before it counts half after `history_half_life_days`. Users with one basket teach nothing.
    With `discoveries` only what was not in that history counts as taken.
    """
    from scipy.linalg import cho_factor, cho_solve

    before, taken, ages_days = _rows(interactions, history_half_life_days)
    if not before.shape[0]:
        return EaseModel(np.zeros((interactions.n_items, interactions.n_items), np.float32))
    if discoveries:
        taken = _not_in(before, taken)
    # A large basket or a long history is one observation, not as many as it has items.
    weight = 1.0 / np.sqrt(np.maximum(1, np.diff(taken.indptr)))
    if half_life_days is not None:
        weight *= np.exp2(-ages_days / half_life_days)
    sizes = np.asarray(before.sum(axis=1)).ravel()
    scaled = before.multiply((1.0 / np.sqrt(sizes))[:, None]).tocsr()
    weighted = scaled.multiply(weight[:, None]).tocsr().T
    gram = np.asarray((weighted @ scaled).todense(), np.float32)
    gram[np.diag_indices_from(gram)] += ridge
    target = np.asarray((weighted @ taken).todense(), np.float32)
    factor = cho_factor(gram, lower=True, overwrite_a=True, check_finite=False)
    return EaseModel(np.asarray(cho_solve(factor, target, overwrite_b=True, check_finite=False), np.float32))


def _rows(interactions: Interactions, half_life_days: float | None) -> tuple[Any, Any, npt.NDArray[np.float64]]:
    """Return histories and baskets as CSR of equal height, and the age in days of each basket at the log's end.

    A history is what the online store would hold: the last `RECENT_EVENTS`, each item by its last event.
    """
    from scipy.sparse import csr_array

    users, rows, times = interactions.users, interactions.rows, interactions.timestamps_ms
    changes = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    starts = np.flatnonzero(np.r_[True, changes]) if len(rows) else np.empty(0, np.intp)
    ends = np.r_[starts[1:], len(rows)] if len(rows) else starts
    first_of = np.searchsorted(users, users[starts])
    kept = first_of < starts
    starts, ends, first_of = starts[kept], ends[kept], first_of[kept]
    items, values, taken = [], [], []
    for start, end, first in zip(starts.tolist(), ends.tolist(), first_of.tolist(), strict=True):
        history = slice(max(first, start - RECENT_EVENTS), start)
        distinct, last = np.unique(rows[history][::-1], return_index=True)
        age_days = (times[start] - times[history][::-1][last]) / _DAY_MS
        items.append(distinct)
        values.append(np.ones(len(distinct)) if half_life_days is None else np.exp2(-age_days / half_life_days))
        taken.append(np.unique(rows[start:end]))
    shape = (len(items), interactions.n_items)
    before = csr_array(_columns(items, values), shape=shape)
    basket = csr_array(_columns(taken, [np.ones(len(t)) for t in taken]), shape=shape)
    return before, basket, (times.max() - times[starts]) / _DAY_MS if len(times) else np.empty(0)


def _not_in(before: Any, taken: Any) -> Any:
    """Return the baskets without what the history of the same row holds."""
    had = before.copy()
    had.data[:] = 1.0
    rest = (taken - taken.multiply(had)).tocsr()
    rest.eliminate_zeros()
    return rest


def _columns(items: list[Any], values: list[Any]) -> tuple[Any, Any, Any]:
    """Return data, indices and offsets of a CSR matrix from its rows."""
    offsets = np.zeros(len(items) + 1, np.int64)
    np.cumsum([len(i) for i in items], out=offsets[1:])
    if not items:
        return np.empty(0, np.float32), np.empty(0, np.int32), offsets
    return np.concatenate(values).astype(np.float32), np.concatenate(items).astype(np.int32), offsets
