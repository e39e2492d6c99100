"""Portraits of user clusters: what sets each group apart, in items and labels of the catalog.

An item or label stands out by how much its share among a cluster's users (or takings) exceeds its share among all,
weighed by how common it is in the cluster: share × log(share / share of all). Called by `raycommend clusters`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.behaviour.clusters import UserClusters
from models.catalog import ItemCatalog

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that sets a cluster apart: its share here (0..1) and how many times the share of all that is."""

    name: str
    share: float
    lift: float


@dataclass(frozen=True, slots=True)
class Portrait:
    """One cluster: how many users, which share of all, the labels and items (by title) that stand out most."""

    cluster: int
    users: int
    share: float
    labels: tuple[Mark, ...]
    items: tuple[Mark, ...]


def portraits(clusters: UserClusters, catalog: ItemCatalog, *, top: int = 5) -> list[Portrait]:
    """Return one portrait per cluster, largest first, with up to `top` labels and items each."""
    takers = np.zeros((len(clusters), len(catalog)))
    for at in range(len(clusters)):
        kept = clusters.rows[at] >= 0
        takers[at, clusters.rows[at][kept]] = clusters.takers[at][kept]
    users = int(clusters.sizes.sum())
    all_takers = takers.sum(axis=0) / max(1, users)
    names, of_items = _labels(catalog)
    found = []
    for at, size in enumerate(clusters.sizes.tolist()):
        here = takers[at] / max(1, size)
        best = _standing_out(here, all_takers)[:top]
        items = tuple(Mark(catalog.title(int(r)), float(here[r]), float(here[r] / all_takers[r])) for r in best)
        labels = _label_marks(names, of_items, takers[at], takers.sum(axis=0))[:top]
        found.append(Portrait(at, size, size / max(1, users), tuple(labels), items))
    return found


def _standing_out(here: Floats, everywhere: Floats) -> npt.NDArray[np.intp]:
    """Return positions whose share is above that of all, those that stand out most first."""
    above = (here > everywhere) & (everywhere > 0)
    score = np.where(above, here * np.log(np.where(above, here, 1.0) / np.where(above, everywhere, 1.0)), 0.0)
    order = np.argsort(-score, kind="stable")
    return order[score[order] > 0]


def _labels(catalog: ItemCatalog) -> tuple[list[str], list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]]:
    """Return all labels as `name: value`, and per attribute the item and the label (in that list) of every pair."""
    names: list[str] = []
    pairs = []
    for name in catalog.label_names:
        column = catalog.label_column(name)
        if column is None:
            continue
        owners = np.repeat(np.arange(len(catalog)), np.diff(column.offsets))
        pairs.append((owners.astype(np.int64), column.codes.astype(np.int64) + len(names)))
        names += [f"{name}: {value}" for value in column.vocabulary]
    return names, pairs


def _label_marks(
    names: list[str],
    pairs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    takers: Floats,
    all_takers: Floats,
) -> list[Mark]:
    here, everywhere = np.zeros(len(names)), np.zeros(len(names))
    for items, codes in pairs:
        np.add.at(here, codes, takers[items])
        np.add.at(everywhere, codes, all_takers[items])
    here, everywhere = here / max(1.0, takers.sum()), everywhere / max(1.0, all_takers.sum())
    return [
        Mark(names[at], float(here[at]), float(here[at] / everywhere[at])) for at in _standing_out(here, everywhere)
    ]
