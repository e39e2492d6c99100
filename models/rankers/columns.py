"""Item columns that several parts of a ranker read: standardised popularity and ordered attributes.

Knows nothing of users. Called by the fusion features and by the inputs of the compressed network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.rankers.statistics import ItemStatistics

Floats = npt.NDArray[np.float32]


def standardised(values: npt.NDArray[Any]) -> Floats:
    """Scale to mean 0 and deviation 1 along the first axis; zeros where the values do not vary or there are none."""
    if len(values) == 0:
        return values.astype(np.float32)
    centred = values.astype(np.float64)
    centred -= centred.mean(axis=0)
    deviation = np.sqrt(np.square(centred).mean(axis=0))
    flat = deviation <= 1e-9
    scaled: Floats = (centred * (~flat / (deviation + flat))).astype(np.float32)
    return scaled


def popularity_table(statistics: ItemStatistics) -> Floats:
    """Return float32[items, 2], finite: standardised log popularity, of all time and of late."""
    columns = (statistics.popularity, statistics.recent)
    with np.errstate(all="ignore"):
        logs = [np.log1p(np.clip(np.nan_to_num(c), 0, 1e30)) for c in columns]
    return standardised(np.stack(logs, axis=1))


def number_table(catalog: ItemCatalog, names: Sequence[str]) -> Floats:
    """Return float32[items, len(names)], each column standardised, NaN where an item has no value.

    A column that never varies says nothing: it is all missing, as is one the catalog does not know.
    """
    table = np.full((len(catalog), len(names)), np.nan, np.float32)
    for at, name in enumerate(names):
        column = catalog.number_column(name)
        if column is not None:
            present = np.isfinite(column)
            scaled = standardised(column[present])
            table[present, at] = scaled if scaled.any() else np.nan
    return table
