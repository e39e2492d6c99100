"""Folds the item log into a catalog: the items of a data set, and what became of them since it was imported.

The result depends on the data set, what earlier releases folded, and the changes since; not on who folds. A removed
item leaves the catalog, a hidden one stays in it. Called by `build` and `reembed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from models.items.change import LiveItem, Numbered, new_item
from pipelines.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Fold:
    """Items changed since the import, by id, up to change number `sequence` of the log."""

    sequence: int = 0
    items: Mapping[str, LiveItem] = field(default_factory=dict)

    def after(self, changes: Iterable[Numbered], dataset: Dataset) -> Fold:
        """Return the fold after more changes. What cannot be applied (an unknown item) changes nothing."""
        imported = {item.item_id: item for item in dataset.items}
        items, sequence = dict(self.items), self.sequence
        for number, change in changes:
            sequence = number
            if change is None:
                continue
            before = items.get(change.item_id)
            if before is None and change.item_id in imported:
                before = LiveItem(imported[change.item_id])
            if before is not None:
                items[change.item_id] = before.after(change)
            elif change.operation == "put":
                items[change.item_id] = new_item(change)
        return Fold(sequence, items)

    def applied(self, dataset: Dataset) -> Dataset:
        """Return the data set with these items: changed ones in their place, new ones behind, removed ones gone."""
        if not self.items:
            return dataset
        imported = {item.item_id for item in dataset.items}
        changed = [(self.items.get(item.item_id), item) for item in dataset.items]
        items = [item if live is None else live.item for live, item in changed if live is None or not live.removed]
        items += [live.item for name, live in self.items.items() if name not in imported and not live.removed]
        return replace(dataset, items=items)
