"""Methods of an evaluation that answer through the real `RecommendationPipeline`, its stages in this process.

Each is fitted on the log it is given and on nothing else; the ranker too is trained on it. Weightings of the same
sources share one engine and what it found out. Called by `cluster.evaluate`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import Pace
from models.bundle import ReleaseBundle, bundle_in_memory
from models.catalog import ItemCatalog
from models.encoder import HashEncoder
from models.events import EventLog
from models.features import ANONYMOUS, RECENT_EVENTS, UserFeatures
from models.media.layout import Layout
from models.rankers.port import CrossEncoder
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.evaluation.ablation import BY_STATE, ONE_WEIGHTING, uniform, variants
from pipelines.evaluation.baselines import Build, Recommend, once
from pipelines.evaluation.evaluate import Report, evaluate
from pipelines.evaluation.protocol import Split
from pipelines.evaluation.shared import LastQuestion, SharedEngine
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.pipeline import RecommendationPipeline
from serve.ranking import ModelRanker
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever, TextQueryEncoder

MERGED, FUSED, SUMMARISED, CASCADE = "merged retrieval", "fused ranking", "with interests", "cascade"
_PATIENCE_MS = 60_000
Tell = Callable[[str], None]
Splits = Callable[[int], Split]
"""From a tie seed to a split."""


class Driver:
    """Builds methods that answer through the pipeline."""

    def __init__(
        self,
        settings: Settings,
        catalog: ItemCatalog,
        embeddings: np.ndarray,
        layout: Layout | None,
        tell: Tell,
        pace: Pace,
    ) -> None:
        """`layout` says where pictures and sounds lie in `embeddings`; None for texts alone."""
        self._settings = settings
        self._catalog = catalog
        self._embeddings, self._layout = embeddings, layout
        self._tell, self._pace = tell, pace
        self.trainings: list[dict[str, Any]] = []
        """What each training of a ranker said of itself, calibration error included."""
        self._fits: dict[int, tuple[EventLog, ReleaseBundle, LastQuestion]] = {}
        self._given = GivenFeatures()
        self._loop = asyncio.new_event_loop()
        self._pool = _Here()
        patient = StageBudget(budget_ms=_PATIENCE_MS)
        self._pipeline_settings: PipelineSettings = settings.serve.pipeline.model_copy(
            update={stage: patient for stage in ("features", "query", "retrieve", "rank")}
        )

    def methods(self, *, ablate: bool, summarised: bool = False) -> dict[str, Build]:
        """Return merged retrieval and, where one is trained, fused ranking.

        With `ablate` variants of sources too, with `summarised` merged retrieval that hears interests in words, whole
        and at a third of their weight.
        """
        found: dict[str, Build] = {}
        if ablate:
            changed = variants(self._settings.models.retrieval, repeats=not self._pipeline_settings.exclude_seen)
            found = {name: self._build(retrieval) for name, retrieval in changed.items()}
        found[MERGED] = self._build(self._settings.models.retrieval)
        if summarised:
            for share in (1.0, 0.3):
                name = f"{SUMMARISED} x {share:g}"
                found[name] = self._build(self._settings.models.retrieval, heard=share)
        if self._settings.pipelines.train_ranker:
            found[FUSED] = self._build(self._settings.models.retrieval, first=partial(self._first, ranked=True))
        return found

    def cascade(self, second: Path) -> dict[str, Build]:
        """Return the first ranker alone (retrieval order where none is trained) and with the one in `second` behind."""
        retrieval, ranked = self._settings.models.retrieval, self._settings.pipelines.train_ranker
        first = once(partial(self._first, ranked=ranked))
        alone = self._build(retrieval, first=first)
        # Both questions have one training log, so each is made once.
        return {
            FUSED if ranked else MERGED: once(alone),
            CASCADE: once(self._build(retrieval, first=first, second=second)),
        }

    def _first(self, train: EventLog, *, ranked: bool) -> CrossEncoder | None:
        return self._train(train, self._fitted(train)[0].statistics) if ranked else None

    def ask(self, question: str, split: Splits, methods: Mapping[str, Build], seeds: Sequence[int]) -> Report:
        """Ask all methods every case of a question, and tell how far that is."""
        self._tell(question)
        bar = partial(self._pace.report, question)
        return evaluate(split, self._catalog, methods, seeds=seeds, progress=self._tell, bar=bar)

    def weightings(self) -> dict[str, Build]:
        """Return merged retrieval with weights by the user's state, and with one weighting for everybody."""
        retrieval = self._settings.models.retrieval
        return {BY_STATE: self._build(retrieval), ONE_WEIGHTING: self._build(uniform(retrieval))}

    def close(self) -> None:
        """Release the loop."""
        self._loop.close()

    def _build(
        self,
        retrieval: RetrievalSettings,
        *,
        first: Callable[[EventLog], CrossEncoder | None] = lambda _: None,
        second: Path | None = None,
        heard: float = 0.0,
    ) -> Build:
        """Return a method; `first` makes its ranker (None is retrieval order), `second` holds the one behind it."""

        def build(train: EventLog) -> Recommend:
            fitted, memory = self._fitted(train)
            behaviour, statistics = fitted.behaviour, fitted.statistics
            ranker = first(train)
            engine = SharedEngine(fitted.engine, retrieval, memory)
            parts = (self._catalog, self._embeddings, behaviour, statistics)
            bundle = bundle_in_memory(
                *parts,
                settings=retrieval,
                ranker=ranker,
                second=None if second is None else self._second(second, statistics),
                ranking=self._settings.models.ranker,
                layout=self._layout,
                engine=engine,
            )
            return self._recommend(bundle, heard)

        return build

    def _fitted(self, train: EventLog) -> tuple[ReleaseBundle, LastQuestion]:
        """Fit what every variant of the weights reads, once per training log."""
        from models.behaviour.behaviour import fit_behaviour
        from models.behaviour.statistics import fit_statistics

        if id(train) not in self._fits:
            of = self._settings.pipelines
            behaviour = fit_behaviour(train, self._catalog, of.behaviour, vectors=self._embeddings)
            statistics = fit_statistics(train, self._catalog, half_life_days=of.popularity_half_life_days)
            parts = (self._catalog, self._embeddings, behaviour, statistics)
            bundle = bundle_in_memory(*parts, settings=self._settings.models.retrieval, layout=self._layout)
            # The log is kept too: an id says nothing about an object that is gone.
            self._fits[id(train)] = (train, bundle, LastQuestion())
        return self._fits[id(train)][1:]

    def _train(self, train: EventLog, statistics: object) -> CrossEncoder | None:
        """Return the ranker trained on `train`, None where that is too little, as a release is built without one."""
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
                layout=self._layout,
                seed=pipelines.seed,
            )
            self._tell(f"ranker: {metrics}")
            self.trainings.append(metrics)
            if "fused_ndcg10" not in metrics:
                return None
            parts = (self._catalog, self._embeddings, statistics)
            return load_ranker(Path(folder), *parts, layout=self._layout)  # type: ignore[arg-type]

    def _second(self, folder: Path, statistics: object) -> CrossEncoder:
        from models.rankers.load import load_ranker

        parts = (folder, self._catalog, self._embeddings, statistics)
        return load_ranker(*parts, layout=self._layout, compute=self._settings.models.ranker.compute)  # type: ignore[arg-type]

    def _recommend(self, bundle: ReleaseBundle, heard: float) -> Recommend:
        given = GivenFeatures(heard) if heard else self._given

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


class _Here(Executor):
    """Runs what it is given at once: with one question at a time, a thread would only add its switches."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor.submit`."""
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


class GivenFeatures:
    """A `FeatureFetcher` that returns the user of the case at hand, with as many events as a store would hold.

    What the case says of interests in words is shortened to `heard` of its length; 0 leaves it out.
    """

    def __init__(self, heard: float = 0.0) -> None:
        self.user, self._heard = ANONYMOUS, np.float32(heard)
        self._last: tuple[UserFeatures, UserFeatures] = (ANONYMOUS, ANONYMOUS)

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        # The same object for the same case: engines remember by it what they found out.
        if self._last[0] is not self.user:
            user = self.user.take(np.arange(len(self.user))[-RECENT_EVENTS:])
            intent = user.intent if self._heard and user.intent is not None else None
            self._last = (self.user, replace(user, intent=None if intent is None else intent * self._heard))
        return self._last[1]
