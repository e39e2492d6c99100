"""A text ranker beside what retrieval and the catalog know: one weighted sum, calibrated to a probability.

A text cross-encoder alone does not know what people buy; a handful of weights, fitted on later events, put its logit
beside popularity and the retrieval scores. Features relative to a list (see `fusion`) are those of the list given.
Trained by `pipelines.training.text`; loaded through `load_ranker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.calibration import PlattScaling
from models.rankers.compressed import RankerError
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.statistics import ItemStatistics
from models.rankers.text import TextRanker, TextTask
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]

FUSED_WITH = ("merged_z", "merged_rank", "text_max", "text_last", "log_popularity", "log_recent", "popularity_affinity")
"""Features that stand beside the text logit: few, since every one of them costs lists to fit."""


@dataclass(frozen=True, slots=True)
class TextFusion:
    """The weights: score = text × logit + Σ weight × feature, and how it becomes a probability."""

    text: float
    weights: Mapping[str, float]
    calibration: PlattScaling | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for `ranker.json`; `of` is the inverse."""
        calibration = None if self.calibration is None else asdict(self.calibration)
        return {"text": self.text, "weights": dict(self.weights), "calibration": calibration}

    @classmethod
    def of(cls, body: Any) -> TextFusion:
        """Read what `to_json` wrote. Raises RankerError on anything else, and on features this version has not."""
        try:
            weights = {str(name): float(value) for name, value in body["weights"].items()}
            calibration = PlattScaling(**body["calibration"]) if body["calibration"] else None
            text = float(body["text"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RankerError(f"ranker.json: fusion cannot be read: {error!r}") from error
        if unknown := sorted(set(weights) - set(FEATURE_NAMES)):
            raise RankerError(f"ranker.json: fusion reads {unknown[0]}, which this version does not build; train again")
        if not np.isfinite([text, *weights.values()]).all():
            raise RankerError("ranker.json: fusion has weights that are not numbers")
        return cls(text, weights, calibration)

    def logits(self, text: Floats, features: Floats) -> Floats:
        """Return scores float32[...] of text logits [...] and features [..., F] in the order of `FEATURE_NAMES`."""
        columns = [FEATURE_NAMES.index(name) for name in self.weights]
        weighed = features[..., columns] @ np.fromiter(self.weights.values(), np.float32, len(self.weights))
        out: Floats = (np.float32(self.text) * text + weighed).astype(np.float32)
        return out


class FusedTextRanker:
    """Implements `CrossEncoder` and `DivisibleRanker` over a text ranker. Immutable; threads may share it."""

    def __init__(
        self,
        text: TextRanker,
        fusion: TextFusion,
        catalog: ItemCatalog,
        embeddings: Floats,
        statistics: ItemStatistics,
        *,
        layout: Layout | None = None,
    ) -> None:
        """`catalog`, `embeddings`, with their `layout`, and `statistics` are those of one release."""
        self.text, self.fusion, self._layout = text, fusion, layout
        self._features = FusionFeatures(catalog, embeddings, statistics, layout=layout)
        self.score_kind = "rank_only" if fusion.calibration is None else "probability"

    def over(self, catalog: ItemCatalog, embeddings: Floats, statistics: ItemStatistics) -> FusedTextRanker:
        """Return the same model and weights over other items, whose vectors have the same layout."""
        parts = (catalog, embeddings, statistics)
        return FusedTextRanker(self.text.over(catalog), self.fusion, *parts, layout=self._layout)

    def score(self, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """See `CrossEncoder.score`: calibrated probabilities, or logits where calibration was not possible."""
        if len(candidates) == 0:
            return np.empty(0, np.float32)
        return self.fused(self.text.score(query, candidates), query, candidates)

    def fused(self, text: Floats, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """Return what `score` returns, from the text logits of the candidates."""
        logits = self.fusion.logits(text, self._features.build(query, candidates))
        return logits if self.fusion.calibration is None else self.fusion.calibration.apply(logits)

    def take_apart(self, query: RetrievalQuery, candidates: Candidates) -> FusedTask:
        """See `DivisibleRanker.take_apart`: what takes time is the text."""
        return FusedTask(self, self.text.take_apart(query, candidates), query, candidates)

    def advance(self, tasks: Sequence[FusedTask], *, tokens: int) -> None:
        """See `DivisibleRanker.advance`."""
        self.text.advance([task.text for task in tasks], tokens=tokens)


@dataclass(frozen=True, slots=True)
class FusedTask:
    """Implements `ScoringTask` over the task of the text ranker."""

    ranker: FusedTextRanker
    text: TextTask
    query: RetrievalQuery
    candidates: Candidates

    @property
    def left(self) -> int:
        """See `ScoringTask.left`."""
        return self.text.left

    def scores(self) -> Floats:
        """See `ScoringTask.scores`."""
        if len(self.candidates) == 0:
            return np.empty(0, np.float32)
        return self.ranker.fused(self.text.scores(), self.query, self.candidates)
