"""Which fusion feature weighed most in an item's score: the fusion head of a compressed ranker, read without torch.

By occlusion: how much the logit drops when a feature is replaced by its mean in training (Zeiler and Fergus 2014,
"Visualizing and Understanding Convolutional Networks", for one input at a time). What history attention adds is no
feature and is not weighed here. Called when evidence is built; scores nothing.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.compressed import CONFIG_FILE, WEIGHTS_FILE
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.statistics import ItemStatistics
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]
_HEAD = ("head.mean", "head.scale", "head.linear", "head.in", "head.in_bias", "head.out")


class FeatureWeights:
    """The fusion head of one release. Builds its tables on first use; safe between threads."""

    def __init__(
        self,
        head: dict[str, Floats],
        catalog: ItemCatalog,
        embeddings: Floats,
        statistics: ItemStatistics,
        *,
        layout: Layout | None = None,
    ) -> None:
        """`head` holds the tensors of `network.head_logits` by name; `layout` is that of `embeddings`."""
        self._head, self._parts, self._layout = head, (catalog, embeddings, statistics), layout

    def over(self, catalog: ItemCatalog, embeddings: Floats, statistics: ItemStatistics) -> FeatureWeights:
        """Return the same head over another catalog, whose vectors have the same layout; nothing is read or built."""
        return FeatureWeights(self._head, catalog, embeddings, statistics, layout=self._layout)

    @cached_property
    def features(self) -> FusionFeatures:
        """The tables that features are looked up in; built when they are first read."""
        return FusionFeatures(*self._parts, layout=self._layout)

    @classmethod
    def load(
        cls,
        folder: Path,
        catalog: ItemCatalog,
        embeddings: Floats,
        statistics: ItemStatistics,
        *,
        layout: Layout | None = None,
    ) -> FeatureWeights | None:
        """Read the head of the ranker in `folder`; None where it is no compressed ranker of this version's features."""
        from safetensors import safe_open

        file = folder / CONFIG_FILE
        body = json.loads(file.read_text()) if file.is_file() else {}
        if body.get("backend") != "compressed" or tuple(body.get("features", ())) != FEATURE_NAMES:
            return None
        with safe_open(str(folder / WEIGHTS_FILE), framework="numpy") as stored:
            head = {name: stored.get_tensor(name) for name in _HEAD}
        return cls(head, catalog, embeddings, statistics, layout=layout)

    def strongest(
        self, query: RetrievalQuery, candidates: Candidates, picked: npt.NDArray[np.int64]
    ) -> list[str | None]:
        """Return the name of the feature that raised each picked candidate most; None where none raised it.

        `candidates` is the whole list that was ranked: some features are relative to it.
        """
        if not len(picked):
            return []
        drops = self.drops(self.features.build(query, candidates)[picked])
        best = drops.argmax(axis=1)
        return [FEATURE_NAMES[b] if drops[at, b] > 0 else None for at, b in enumerate(best.tolist())]

    def drops(self, features: Floats) -> Floats:
        """Return float32[rows, features]: the logit minus the logit without that feature."""
        x = (features - self._head["head.mean"]) / self._head["head.scale"]
        without = np.repeat(x[:, None, :], x.shape[1], axis=1)
        at = np.arange(x.shape[1])
        without[:, at, at] = 0.0
        out: Floats = self._logits(x)[:, None] - self._logits(without)
        return out

    def _logits(self, x: Floats) -> Floats:
        hidden = np.maximum(x @ self._head["head.in"].T + self._head["head.in_bias"], 0.0)
        out: Floats = x @ self._head["head.linear"] + hidden @ self._head["head.out"]
        return out
