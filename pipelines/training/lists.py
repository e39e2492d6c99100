"""The lists a ranker learns from and is judged by, with sources that know only what came before them.

Knows nothing of models. Called by the training of the compressed ranker; the text training shares how sources are
fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.catalog import ItemCatalog
from models.events import EventLog
from models.index import FaissIndex, FlatIndex, VectorIndex
from models.index_build import build_faiss
from models.media.layout import Layout
from models.rankers.fusion import FusionFeatures
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.training.examples import Progress, RankingLists, build_lists
from pipelines.training.settings import TrainingSettings
from pipelines.training.split import Example, Part, TrainingSplit, stretches

_EXACT_INDEX_UP_TO = 20_000

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Sources:
    """How the sources behind the lists are fitted and merged: as the release will serve them."""

    retrieval: RetrievalSettings
    behaviour: BehaviourSettings
    half_life_days: float = 14.0
    layout: Layout | None = None
    """Where pictures and sounds lie in the vectors; None for texts alone."""


def ranking_lists(
    split: TrainingSplit,
    catalog: ItemCatalog,
    embeddings: Floats,
    settings: TrainingSettings,
    sources: Sources,
    *,
    progress: Progress | None,
) -> tuple[RankingLists, RankingLists]:
    """Return training and validation lists; every source knows only events before the lists it fills.

    Where answers may name what the user has, a request can leave it out: what is new to them is asked for too.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    index = vector_index(embeddings)

    def lists(fit: EventLog, examples: list[Example], part: Part) -> list[RankingLists]:
        statistics = fit_statistics(fit, catalog, half_life_days=sources.half_life_days)
        behaviour = fit_behaviour(fit, catalog, sources.behaviour, vectors=embeddings)
        parts = (index, behaviour, statistics, sources.retrieval)
        engine = RetrievalEngine(catalog, embeddings, *parts, layout=sources.layout)
        features = FusionFeatures(catalog, embeddings, statistics, layout=sources.layout)
        asked = [(settings.exclude_seen, examples)]
        if not settings.exclude_seen:
            asked.append((True, [example for example in examples if example.finds_new()]))
        return [
            build_lists(
                of,
                engine,
                features,
                catalog,
                size=settings.list_size,
                exclude_seen=exclude_seen,
                keep_missed=part == Part.validate,
                near_future=settings.near_future,
                near_future_weight=settings.near_future_weight,
                shown=split.shown,
                progress=progress,
            )
            for exclude_seen, of in asked
        ]

    # Many tiny matrix products: waking a second BLAS thread costs more than it brings.
    with threadpool_limits(limits=1, user_api="blas"):
        train, validate = (
            joined([x for fit, of in stretches(split, part, settings.stretches) for x in lists(fit, of, part)])
            for part in (Part.train, Part.validate)
        )
    return train, validate


def vector_index(embeddings: Floats) -> VectorIndex:
    """Return an index over the vectors: exact while that is cheap."""
    if len(embeddings) <= _EXACT_INDEX_UP_TO:
        return FlatIndex(embeddings)
    return FaissIndex(build_faiss(embeddings).index, embeddings)


def joined(lists: Sequence[RankingLists]) -> RankingLists:
    """Return the lists of all, one after another."""
    return RankingLists(*(np.concatenate([getattr(one, f.name) for one in lists]) for f in fields(RankingLists)))
