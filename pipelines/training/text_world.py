"""What is known of items and behaviour when a text training begins: sources as served, and what looks like the past.

Called by the text training and what judges it. Knows nothing of examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import Statistics, fit_statistics
from models.candidates import Source
from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.load import load_ranker
from models.rankers.port import CrossEncoder
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.ablation import only
from pipelines.training.lists import Sources, vector_index
from pipelines.training.split import TrainingSplit

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextWorld:
    """What is known of items and behaviour when the examples begin."""

    catalog: ItemCatalog
    embeddings: Floats
    statistics: Statistics
    engine: RetrievalEngine
    """All sources, as they will be served."""
    similar: RetrievalEngine
    """Items like the user's past, by what texts mean: no event decides what it finds."""
    layout: Layout | None

    def ranker(self, folder: Path) -> CrossEncoder:
        """Return the ranker in `folder` over these items. Raises RankerError where it reads others."""
        parts = (folder, self.catalog, self.embeddings, self.statistics)
        # Not the engine that happens to be fastest now: a training that is run again ends with the same bytes.
        return load_ranker(*parts, layout=self.layout, compute="transformers")


def text_world(split: TrainingSplit, catalog: ItemCatalog, embeddings: Floats, sources: Sources) -> TextWorld:
    """Fit sources and statistics on what the split leaves them; nothing later than its examples."""
    statistics = fit_statistics(split.fit, catalog, half_life_days=sources.half_life_days)
    behaviour = fit_behaviour(split.fit, catalog, sources.behaviour, vectors=embeddings)
    index = vector_index(embeddings)

    def engine(retrieval: RetrievalSettings) -> RetrievalEngine:
        return RetrievalEngine(catalog, embeddings, index, behaviour, statistics, retrieval, layout=sources.layout)

    served, similar = engine(sources.retrieval), engine(only(sources.retrieval, Source.semantic))
    return TextWorld(catalog, embeddings, statistics, served, similar, sources.layout)
