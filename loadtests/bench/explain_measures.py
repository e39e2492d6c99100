"""How the figures of the benchmark `explain` follow from its tables of texts; registered for `bench verify`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtests import stats
from loadtests.bench.measures import measure
from loadtests.bench.readability import covered, reading_ease
from loadtests.stats import Estimate


@measure
def column_share(path: Path, *, column: str, equals: str, among: str = "") -> Estimate:
    """Share of rows whose `column` is `equals`; with `among` only of rows whose `source` is that."""
    table = read_columns(path)
    values, sources = np.array(table[column]), np.array(table["source"])
    kept = values if not among else values[sources == among]
    return stats.mean((kept == equals).astype(np.float64))


@measure
def distinct_share(path: Path, *, column: str, over: str = "") -> Estimate:
    """Distinct texts over all texts of `column`; with `over` minus the same of that column."""
    table = read_columns(path)
    mine, theirs = table[column], table[over] if over else []
    value = len(set(mine)) / len(mine) - (len(set(theirs)) / len(theirs) if theirs else 0.0)
    return Estimate(value, len(mine), (None, None))


def read_columns(path: Path) -> dict[str, list[str]]:
    """Return a table of texts that `save_table` wrote."""
    import pyarrow.parquet as pq

    found: dict[str, list[str]] = pq.read_table(path).to_pydict()
    return found


@measure
def reading_ease_mean(path: Path, *, column: str) -> Estimate:
    """Mean Flesch reading ease of the texts of a column; texts without words do not count."""
    found = (reading_ease(text) for text in read_columns(path)[column])
    return stats.mean([value for value in found if value is not None])


@measure
def facts_covered(path: Path, *, column: str) -> Estimate:
    """Mean share of each row's reference facts (stems, separated by spaces) that its text names."""
    table = read_columns(path)
    shares = (covered(frozenset(f.split()), text) for f, text in zip(table["facts"], table[column], strict=True))
    return stats.mean([share for share in shares if share is not None])
