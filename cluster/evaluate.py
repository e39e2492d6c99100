"""Drives the real `RecommendationPipeline` with in-process stages through the evaluation protocol.

Every method is fitted on the training part of a split only; the ranker too is trained there, once per tie seed,
so that no held-out event ever reaches it. Where settings say that touched items may come again, the question is the
next basket instead of the next item. Called by the `quality` benchmark behind `raycommend evaluate`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from cluster.config import Settings
from cluster.prepare import import_dataset
from cluster.workspace import Workspace
from models.bundle import EMBEDDINGS_FILE, ReleaseBundle, bundle_in_memory
from models.candidates import SCORED_SOURCES, Source
from models.catalog import ItemCatalog
from models.encoder import HashEncoder
from models.events import EventLog
from models.features import ANONYMOUS, RECENT_EVENTS, UserFeatures
from models.rankers.port import CrossEncoder
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights
from pipelines.build import Builder
from pipelines.evaluation.baselines import BEST_BASELINE, Build, Recommend, baselines, once, shop_baselines
from pipelines.evaluation.evaluate import Report, evaluate
from pipelines.evaluation.protocol import Split, leave_last, split_by_time
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.pipeline import RecommendationPipeline
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever, ModelRanker, TextQueryEncoder

DATASETS = {"ml-100k": "movielens-100k"}
"""Names of the evaluation that differ from the importer's."""
MERGED, FUSED = "merged retrieval", "fused ranking"
NEXT_ITEM, NEW, REPEAT, COLD = "next item", "new", "repeat", "cold"
"""The questions: the next item; or of the next basket what is new to the user, or all of it, or a new user's first."""
_PATIENCE_MS = 60_000
_EVERYTHING = 1 << 31
Tell = Callable[[str], None]


def evaluate_dataset(settings: Settings, name: str, *, seeds: int, ablate: bool, tell: Tell) -> Mapping[str, Report]:
    """Return every method's figures by question, on a data set that is imported and embedded first where needed."""
    workspace = Workspace(settings)
    name = DATASETS.get(name, name)
    if not workspace.dataset_folder(name).is_dir():
        import_dataset(settings, name, paths={})
    dataset = workspace.dataset(name)
    builder = Builder(
        workspace.artifacts(),
        settings=settings.pipelines.model_copy(update={"train_ranker": False}),
        retrieval=settings.models.retrieval,
        encoder=workspace.encoder,
        encoder_uri=settings.models.encoder.uri,
    )
    release = builder.run(dataset).release
    artifacts = workspace.artifacts()
    catalog = ItemCatalog(artifacts.get(release.artifacts["catalog"]).path)
    file = artifacts.get(release.artifacts["embeddings"]).path / EMBEDDINGS_FILE
    driver = _Driver(settings, catalog, np.load(file, allow_pickle=False), tell)
    try:
        ours = driver.methods(ablate=ablate)
        if settings.serve.pipeline.exclude_seen:
            methods = {**baselines(catalog), **ours}
            every = tuple(range(seeds))
            leave = partial(_leave_last, dataset.events)
            return {NEXT_ITEM: evaluate(leave, catalog, methods, seeds=every, progress=tell)}
        # One split serves all questions, so each method is fitted once.
        methods = {name: once(build) for name, build in {**shop_baselines(catalog), **ours}.items()}
        found = {}
        for question, split in _baskets(dataset.events).items():
            tell(question)
            found[question] = evaluate(partial(_same, split), catalog, methods, seeds=(0,), progress=tell)
        return found
    finally:
        driver.close()


def _leave_last(events: EventLog, seed: int) -> Split:
    return leave_last(events, tie_seed=seed)


def _same(split: Split, seed: int) -> Split:
    return split


def _baskets(events: EventLog) -> dict[str, Split]:
    """Return the cases of each question over the very same training log; they hold everything a user ever took."""
    every = split_by_time(events, repeats=True, limit=_EVERYTHING)
    new = split_by_time(events, limit=_EVERYTHING)
    cold = split_by_time(events, repeats=True, cold=True)
    return {NEW: Split(every.train, new.cases), REPEAT: every, COLD: Split(every.train, cold.cases)}


class _Driver:
    """Builds methods that answer through the pipeline."""

    def __init__(self, settings: Settings, catalog: ItemCatalog, embeddings: np.ndarray, tell: Tell) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embeddings = embeddings
        self._tell = tell
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(max_workers=1)
        patient = StageBudget(budget_ms=_PATIENCE_MS)
        self._pipeline_settings: PipelineSettings = settings.serve.pipeline.model_copy(
            update={stage: patient for stage in ("features", "query", "retrieve", "rank")}
        )

    def methods(self, *, ablate: bool) -> dict[str, Build]:
        """Return merged retrieval and, where one is trained, fused ranking; with `ablate` every source alone too."""
        found: dict[str, Build] = {}
        if ablate:
            for source in SCORED_SOURCES:
                if source is Source.similar or (source is Source.repeat and self._pipeline_settings.exclude_seen):
                    continue  # these have nothing to say without seeds, or where touched items are left out
                found[f"only {source.name}"] = self._build(_only(self._settings.models.retrieval, source))
        found[MERGED] = self._build(self._settings.models.retrieval)
        if self._settings.pipelines.train_ranker:
            found[FUSED] = self._build(self._settings.models.retrieval, ranked=True)
        return found

    def close(self) -> None:
        """Release the loop and the thread."""
        self._pool.shutdown()
        self._loop.close()

    def _build(self, retrieval: RetrievalSettings, *, ranked: bool = False) -> Build:
        def build(train: EventLog) -> Recommend:
            from models.behaviour.behaviour import fit_behaviour
            from models.behaviour.statistics import fit_statistics

            pipelines = self._settings.pipelines
            behaviour = fit_behaviour(train, self._catalog, pipelines.behaviour)
            half_life = pipelines.popularity_half_life_days
            statistics = fit_statistics(train, self._catalog, half_life_days=half_life)
            ranker = self._train(train, statistics) if ranked else None
            bundle = bundle_in_memory(
                self._catalog, self._embeddings, behaviour, statistics, settings=retrieval, ranker=ranker
            )
            return self._recommend(bundle)

        return build

    def _train(self, train: EventLog, statistics: object) -> CrossEncoder:
        from models.rankers.load import load_ranker
        from pipelines.training.train import train_ranker

        pipelines = self._settings.pipelines
        with tempfile.TemporaryDirectory() as folder:
            metrics = train_ranker(
                train,
                self._catalog,
                self._embeddings,
                Path(folder),
                settings=pipelines.training,
                retrieval=self._settings.models.retrieval,
                behaviour=pipelines.behaviour,
                half_life_days=pipelines.popularity_half_life_days,
                seed=pipelines.seed,
            )
            self._tell(f"ranker: {metrics}")
            return load_ranker(Path(folder), self._catalog, self._embeddings, statistics)  # type: ignore[arg-type]

    def _recommend(self, bundle: ReleaseBundle) -> Recommend:
        given = _GivenFeatures()

        def bundle_of(tenant: str, release_id: str) -> ReleaseBundle:
            return bundle

        pipeline = RecommendationPipeline(
            fetcher=given,
            encoder=TextQueryEncoder(HashEncoder(), self._pool),
            retriever=EngineRetriever(bundle_of, self._pool),
            ranker=ModelRanker(bundle_of, self._pool),
            bundle_of=bundle_of,
            settings=self._pipeline_settings,
            recorder=SilentRecorder(),
        )

        def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
            given.user = query.user
            ctx = RequestContext("evaluation", "main", "", Deadline.after_ms(_PATIENCE_MS), query.now_ms)
            request = RecommendRequest(user_id="evaluation", k=k, exclude_seen=query.exclude_seen)
            slate = self._loop.run_until_complete(pipeline.recommend(ctx, request))
            if ctx.degraded:
                raise RuntimeError(f"a degraded answer must not be scored: {ctx.degraded}")
            return slate.item_ids

        return recommend


class _GivenFeatures:
    """A `FeatureFetcher` that returns the user of the case at hand, with as many events as a store would hold."""

    user: UserFeatures = ANONYMOUS

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        return self.user.take(np.arange(len(self.user))[-RECENT_EVENTS:])


def _only(settings: RetrievalSettings, source: Source) -> RetrievalSettings:
    weights = SourceWeights(**{str(s.name): float(s == source) for s in SCORED_SOURCES})
    return settings.model_copy(update={n: weights for n in ("weights", "short_weights", "cold_weights")})


__all__ = ["BEST_BASELINE", "COLD", "DATASETS", "FUSED", "MERGED", "NEW", "NEXT_ITEM", "REPEAT", "evaluate_dataset"]
