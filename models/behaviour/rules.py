"""Association rules: what is taken together with an item, with support, confidence and lift.

A basket is what one user took without a pause longer than `gap_s`: the lines of an invoice share one time, so an
invoice is a basket; so is a sitting of a browsing user. One definition serves both, and nobody has to say which kind
of log it is. Where a log has purchases only they count: "bought together" must not be said of what was looked at.

Rules of one item are ordered by confidence minus the consequent's own share of baskets (its leverage, Piatetsky-
Shapiro 1991, for a fixed antecedent): lift alone favours the rarest items, confidence alone the most popular ones.
Called by `behaviour.fit_behaviour` (fit, save) and by the lists service (read). Knows nothing of users at request time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.behaviour.interactions import Interactions, interactions_of
from models.catalog import ItemCatalog
from models.events import EventLog, EventType

_COLUMNS = ("offsets", "columns", "support", "confidence", "lift")
_BLOCK = 1_000
"""Antecedents counted at a time: bounds memory whatever the catalog's size."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`row` is taken together with an item.

    `support` baskets hold both; that is the share `confidence` of the item's baskets, and `lift` times as many as
    chance would have.
    """

    row: int
    support: int
    confidence: float
    lift: float


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of item `r` are at `offsets[r]:offsets[r+1]`, best first.

    `offsets` int64[items+1]; `columns` int32 rows of consequents, `support` int32 baskets, `confidence` and `lift`
    float32, one each per rule.
    """

    offsets: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int32]
    support: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32]
    lift: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, row: int) -> list[Rule]:
        """Return the rules of one item, best first; empty where there are none, or the item is newer."""
        if row >= len(self):
            return []
        span = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        parts = (self.columns[span], self.support[span], self.confidence[span], self.lift[span])
        return [Rule(int(r), int(s), float(c), float(x)) for r, s, c, x in zip(*parts, strict=True)]

    def save(self, folder: Path) -> None:
        """Write five npy files into `folder`."""
        for name in _COLUMNS:
            np.save(folder / f"rule_{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, *, items: int) -> Rules:
        """Map what `save` wrote; no rules where the artifact was made before there were any."""
        if not (folder / "rule_offsets.npy").exists():
            return cls.none(items)
        return cls(*(np.load(folder / f"rule_{n}.npy", mmap_mode="r", allow_pickle=False) for n in _COLUMNS))

    @classmethod
    def none(cls, items: int) -> Rules:
        """No rules for `items` items."""
        no_share = np.empty(0, np.float32)
        return cls(np.zeros(items + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.int32), no_share, no_share)


def fit_rules(
    log: EventLog,
    catalog: ItemCatalog,
    *,
    gap_s: float = 1800.0,
    minimum_support: int = 5,
    per_item: int = 20,
    longest_basket: int = 200,
) -> Rules:
    """Find the best rules of every item; pure and deterministic.

    Args:
        log: events; purchases alone are read where there are any, else all positive types.
        catalog: whose rows the rules are in.
        gap_s: a longer pause between two events of a user ends a basket.
        minimum_support: baskets that must hold both items. Rules with a lift of at most 1 are left out too.
        per_item: the most rules an item keeps.
        longest_basket: a longer basket is cut into pieces: it says little and costs its square.
    """
    bought = log.types == EventType.purchase
    taken = interactions_of(log.take(bought) if bought.any() else log, catalog)
    return rules_of(
        baskets_of(taken, gap_s=gap_s, longest=longest_basket),
        taken.rows,
        taken.n_items,
        minimum_support=minimum_support,
        per_item=per_item,
    )


def baskets_of(taken: Interactions, *, gap_s: float, longest: int) -> npt.NDArray[np.int64]:
    """Return the basket of each event: codes that ascend from 0, int64[events]."""
    size = len(taken)
    if not size:
        return np.empty(0, np.int64)
    starts = np.ones(size, dtype=bool)
    starts[1:] = (taken.users[1:] != taken.users[:-1]) | (np.diff(taken.timestamps_ms) > gap_s * 1000)
    first = np.maximum.accumulate(np.where(starts, np.arange(size), 0))
    starts |= (np.arange(size) - first) % longest == 0
    return np.cumsum(starts) - 1


def rules_of(
    baskets: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int32],
    items: int,
    *,
    minimum_support: int,
    per_item: int,
) -> Rules:
    """The same from baskets and catalog rows, one pair per event; an item counts once per basket."""
    from scipy.sparse import csr_array

    if not len(rows):
        return Rules.none(items)
    total = int(baskets[-1]) + 1
    pairs = np.unique(baskets * items + rows)
    basket, row = pairs // items, pairs % items
    count = np.bincount(row, minlength=items)
    # An item that is too rare cannot be in a frequent pair (Agrawal and Srikant 1994).
    kept = count[row] >= minimum_support
    ones = np.ones(int(kept.sum()), np.int32)
    held: Any = csr_array((ones, (basket[kept], row[kept])), shape=(total, items))
    by_item = held.T.tocsr()
    blocks = [
        _best_of(by_item[start : start + _BLOCK] @ held, start, count, total, minimum_support, per_item)
        for start in range(0, items, _BLOCK)
    ]
    antecedents, columns, support = (np.concatenate(part) for part in zip(*blocks, strict=True))
    confidence = support / count[antecedents]
    offsets = np.zeros(items + 1, np.int64)
    np.cumsum(np.bincount(antecedents, minlength=items), out=offsets[1:])
    return Rules(
        offsets,
        columns.astype(np.int32),
        support.astype(np.int32),
        confidence.astype(np.float32),
        (confidence * total / count[columns]).astype(np.float32),
    )


def _best_of(
    together: Any, start: int, count: npt.NDArray[np.int64], total: int, minimum_support: int, per_item: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the best pairs of a block of antecedents as (antecedent, consequent, support), in order."""
    pairs = together.tocoo()
    a, b, support = pairs.row.astype(np.int64) + start, pairs.col.astype(np.int64), pairs.data.astype(np.int64)
    kept = (a != b) & (support >= minimum_support) & (support * total > count[a] * count[b])
    a, b, support = a[kept], b[kept], support[kept]
    order = np.lexsort((b, count[b] / total - support / np.maximum(count[a], 1), a))
    a, b, support = a[order], b[order], support[order]
    # Position within the run of one antecedent: its own index less that of the run's first.
    place = np.arange(len(a)) - np.searchsorted(a, a)
    best = place < per_item
    return a[best], b[best], support[best]
