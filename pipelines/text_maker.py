"""How a trained text ranker of a release is made: from an encoder, from the one served now, or distilled from it.

Called by the `train` command, which hands it to the builder (see `makers.RankerMaker`). Knows nothing of releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifacts import Artifact
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.progress import Progress, silent
from models.rankers.fusion import FEATURE_NAMES
from models.retrieval.settings import RetrievalSettings
from pipelines.dataset import Dataset
from pipelines.makers import key_of, live_inputs, sources, window, with_live
from pipelines.settings import PipelinesSettings
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings

Floats = npt.NDArray[np.float32]
_GENTLE = 0.3
"""Step sizes when training goes on, relative to those of a first training."""


@dataclass(frozen=True)
class TextTraining:
    """Trains a text ranker from the model `uri` that `start` brings, against the ranker served now.

    With `student` layers it is distilled from `served`, with `since_ms` it goes on from `served`, on later events; both
    need `served` to be a text ranker.
    """

    settings: PipelinesSettings
    retrieval: RetrievalSettings
    uri: str
    start: Callable[[], Path]
    progress: Progress = silent
    live: EventLog = field(default_factory=EventLog.empty)
    served: Artifact | None = None
    since_ms: int | None = None
    student: int | None = None
    checkpoint: Callable[[str], Checkpoint] | None = None

    def inputs(self, catalog: ItemCatalog) -> dict[str, Any]:
        """See `RankerMaker.inputs`."""
        return {
            **sources(self.settings, self.retrieval),
            "text": self._text.deciding(),
            "training": self.settings.training.deciding(),
            "features": list(FEATURE_NAMES),
            "start": self._ref if self._from_served else self.uri,
            "student": self.student,
            "since_ms": self.since_ms,
            **live_inputs(self.live, catalog),
        }

    def outdated(self, ref: str, meta: Mapping[str, Any]) -> bool:
        """A ranker that was compared with another one than is served now has no verdict that counts."""
        return ref != self._ref and meta.get("parent") != self._ref

    def make(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: Floats, to: Path, *, layout: Layout | None
    ) -> Mapping[str, Any]:
        """See `RankerMaker.make`."""
        from pipelines.training.text import Origin, Sources, train_text_ranker

        log = with_live(dataset.events, self.live, catalog)
        served = None if self.served is None else self.served.path
        start = served if self._from_served and served is not None else self.start()
        kept = None
        if self.checkpoint is not None:
            decided_by = {**self.inputs(catalog), "against": self._ref}
            kept = self.checkpoint(key_of(decided_by, log, catalog, embeddings, layout))
        of = self.settings
        metrics = train_text_ranker(
            log,
            catalog,
            embeddings,
            to,
            Origin(start, start if self.student is not None else None, self.since_ms),
            settings=self._text,
            training=self.settings.training,
            sources=Sources(self.retrieval, of.behaviour, of.popularity_half_life_days, layout),
            seed=self.settings.seed,
            incumbent=served,
            checkpoint=kept,
            progress=lambda step, share: self.progress(step, round(share * 100), 100),
        )
        return {"metrics": metrics, "parent": self._ref, **window(log)}

    @property
    def _from_served(self) -> bool:
        return self.since_ms is not None or self.student is not None

    @property
    def _text(self) -> TextTrainingSettings:
        of = self.settings.text
        if self.student is not None:
            return of.model_copy(update={"layers": self.student, "frozen_layers": 0})
        if self.since_ms is not None:
            rates = {name: _GENTLE * getattr(of, name) for name in ("learning_rate", "head_learning_rate")}
            return of.model_copy(update={"layers": None, **rates})
        return of

    @property
    def _ref(self) -> str | None:
        return None if self.served is None else self.served.ref
