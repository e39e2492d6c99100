"""The collaborative port: what people who took these items also took.

`EaseModel` (small catalogs) and `AlsModel` (large ones) implement it. Called by the collaborative source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from models.opinion import Opinion, Rows, Scores


class CollaborativeModel(Protocol):
    """Folds a user in from their events at request time, so that no retraining is needed to follow a click."""

    kind: str

    def fold_in(self, rows: Rows, weights: Scores) -> Opinion:
        """Return what the user whose (repeatable) items are `rows`, each counting `weights`, would take.

        Thread-safe, no effect, raises nothing.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write npy files into `folder`; the class method `load` of the same class maps them."""
        ...
