"""Two collaborative models as one: each opinion scaled to unit variance, then added.

A regression on what was tried lately follows a season and is lost when it turns; EASE over a longer past is slow and
steady. What the two agree on holds in both. Called by `behaviour.fit_behaviour`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from models.behaviour.ease import EaseModel
from models.opinion import DenseOpinion, Opinion, Rows, Scores

_META, _STEADY, _LATELY = "blend.json", "steady", "lately"


class BlendedModel:
    """`steady` and `share` times `lately`, for catalogs small enough for dense weights."""

    kind = "blend"

    def __init__(self, steady: EaseModel, lately: EaseModel, *, share: float) -> None:
        """Both are of the same catalog. `share` is how much `lately` counts beside `steady` (1.0)."""
        self._steady, self._lately, self._share = steady, lately, share

    def fold_in(self, rows: Rows, weights: Scores) -> Opinion:
        """See `CollaborativeModel.fold_in`. To `steady` all items of the user count alike: it has no order."""
        items = np.unique(rows)
        steady = _unit(self._steady.scores(items, np.ones(len(items), np.float32)))
        lately = _unit(self._lately.scores(rows, weights))
        return DenseOpinion(steady + np.float32(self._share) * lately)

    def save(self, folder: Path) -> None:
        """See `CollaborativeModel.save`."""
        for name, model in ((_STEADY, self._steady), (_LATELY, self._lately)):
            (folder / name).mkdir()
            model.save(folder / name)
        (folder / _META).write_text(json.dumps({"share": self._share}))

    @classmethod
    def load(cls, folder: Path) -> BlendedModel:
        """Map what `save` wrote."""
        share = float(json.loads((folder / _META).read_text())["share"])
        return cls(EaseModel.load(folder / _STEADY), EaseModel.load(folder / _LATELY), share=share)


def _unit(scores: Scores) -> Scores:
    spread = float(scores.std())
    return scores / np.float32(spread) if spread > 0 else scores
