"""Turns catalog and history into the integer inputs of the compressed network: label slots, id slots, buckets.

Called by the compressed ranker when it loads and scores, and by training; both therefore see the same numbers.
Rows are shifted by one: token 0 is padding (an unknown or missing item).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.rankers.columns import number_table, popularity_table
from models.rankers.history import History
from models.rankers.network import AGE_BUCKETS, EVENT_TYPES, LABEL_SLOTS, VALUE_BUCKETS
from models.rankers.statistics import ItemStatistics

POPULARITY_COLUMNS = 2
MAX_NUMBERS = 8
"""How many of a catalog's ordered attributes an item token reads."""

Ints = npt.NDArray[np.int64]


def label_vocabulary(catalog: ItemCatalog, *, limit: int = 1024) -> list[str]:
    """Return the `limit` most frequent labels of a catalog as `name=value`, the input of `label_slots`."""
    counted: list[tuple[int, str]] = []
    for name in catalog.trait_names:
        column = catalog.label_column(name)
        assert column is not None
        counts = np.bincount(column.codes, minlength=len(column.vocabulary))
        counted += [(-int(c), f"{name}={v}") for c, v in zip(counts, column.vocabulary, strict=True)]
    return [text for _, text in sorted(counted)[:limit]]


def label_slots(catalog: ItemCatalog, vocabulary: Sequence[str]) -> Ints:
    """Return int64[items, LABEL_SLOTS]: 1 + position in `vocabulary` of an item's first labels, 0 for none."""
    position = {text: at + 1 for at, text in enumerate(vocabulary)}
    slots = np.zeros((len(catalog), LABEL_SLOTS), np.int64)
    used = np.zeros(len(catalog), np.int64)
    for name in catalog.trait_names:
        column = catalog.label_column(name)
        assert column is not None
        translate = np.array([position.get(f"{name}={v}", 0) for v in column.vocabulary] or [0], np.int64)
        owner = np.repeat(np.arange(len(catalog)), np.diff(column.offsets))
        within = np.arange(len(owner)) - np.repeat(column.offsets[:-1], np.diff(column.offsets)) + used[owner]
        fits = within < LABEL_SLOTS
        slots[owner[fits], within[fits]] = translate[column.codes[fits]]
        used += np.diff(column.offsets)
    return slots


def number_inputs(catalog: ItemCatalog, statistics: ItemStatistics, names: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return float32[items, 2 + len(names)] within ±5: popularity, recent popularity, attributes (0 where missing)."""
    joined = np.concatenate([popularity_table(statistics), number_table(catalog, names)], axis=1)
    bounded: npt.NDArray[np.float32] = np.clip(np.nan_to_num(joined), -5.0, 5.0)
    return bounded


def id_slots(catalog: ItemCatalog, known: npt.NDArray[np.uint64]) -> Ints:
    """Return int64[items]: 1 + position in `known` (sorted item-id hashes) or 0 for an item without a vector."""
    return slots_of(catalog.hashes, known)


def slots_of(hashes: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> Ints:
    """Return int64[hashes]: see `id_slots`."""
    if len(known) == 0:
        return np.zeros(len(hashes), np.int64)
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[at] == hashes, at + 1, 0).astype(np.int64)


def history_columns(history: History, length: int) -> Ints:
    """Return int64[4, length], padded on the left: token (row + 1), type, value bucket, age bucket."""
    out = np.zeros((4, length), np.int64)
    n = min(len(history), length)
    if n:
        out[0, -n:] = history.rows[-n:].astype(np.int64) + 1
        out[1, -n:] = np.minimum(history.types[-n:], EVENT_TYPES - 1)
        out[2, -n:] = np.clip(np.rint(history.values[-n:]), 0, VALUE_BUCKETS - 1)
        ages = np.maximum(history.ages_s[-n:], 0.0)
        out[3, -n:] = np.clip(np.log2(1.0 + ages), 0, AGE_BUCKETS - 1)
    return out
