"""Drives the real `RecommendationPipeline` with in-process stages through the evaluation protocol.

Every method is fitted on the training part of a split only; the ranker too is trained there, once per tie seed,
so that no held-out event ever reaches it. Where settings say that touched items may come again, the question is the
next basket instead of the next item. Called by the `quality` benchmark behind `raycommend evaluate`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.interests import summaries_before_test, summary_vectors
from cluster.prepare import import_dataset
from cluster.workspace import Workspace
from models.bundle import EMBEDDINGS_FILE, ReleaseBundle, bundle_in_memory
from models.catalog import ItemCatalog
from models.encoder import HashEncoder
from models.events import EventLog
from models.features import ANONYMOUS, RECENT_EVENTS, UserFeatures
from models.rankers.port import CrossEncoder
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.evaluation.ablation import BY_STATE, ONE_WEIGHTING, slices, uniform, variants
from pipelines.evaluation.baselines import BEST_BASELINE, Build, Recommend, baselines, once, shop_baselines
from pipelines.evaluation.declared import FOLDS, strangers, undeclared
from pipelines.evaluation.evaluate import Report, evaluate
from pipelines.evaluation.protocol import Split, leave_last, moment_of, split_by_time, validation_log
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.pipeline import RecommendationPipeline
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever, ModelRanker, TextQueryEncoder

if TYPE_CHECKING:
    from models.behaviour.behaviour import Behaviour
    from models.behaviour.statistics import Statistics

DATASETS = {"ml-100k": "movielens-100k"}
"""Names of the evaluation that differ from the importer's."""
MERGED, FUSED = "merged retrieval", "fused ranking"
SUMMARISED, UNDECLARED = "with interests", "nothing declared"
NEXT_ITEM, NEW, REPEAT, COLD = "next item", "new", "repeat", "cold"
"""The questions: the next item; or of the next basket what is new to the user, or all of it, or a new user's first."""
DECLARED = {"declared": False, "declared, 1-4 events": True}
"""What only validation asks: what somebody new likes next who declared the labels of what they liked."""
_PATIENCE_MS = 60_000
_EVERYTHING = 1 << 31
Tell = Callable[[str], None]
Splits = Callable[[int], Split]
"""From a tie seed to a split."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Reports by question; with ablation also by question and state of the user (`new, 1-4 events`)."""

    questions: Mapping[str, Report]
    states: Mapping[str, Report]


def evaluate_dataset(
    settings: Settings,
    name: str,
    *,
    seeds: int,
    ablate: bool,
    validation: bool = False,
    summaries: Path | None = None,
    tell: Tell,
) -> Evaluation:
    """Return every method's figures by question, on a data set that is imported and embedded first where needed.

    With `validation` the test events are dropped, and the events before them are asked for: what decisions go by.
    With `summaries`, a file of `explain --summaries --before-test`, merged retrieval is also asked with the vector of
    the user's interests in words, with the first tie seed alone: for others the file would hold what is asked for.

    Raises OperatorError for summaries where they would tell what is asked for (validation events, or next baskets).
    """
    workspace = Workspace(settings)
    name = DATASETS.get(name, name)
    if not workspace.dataset_folder(name).is_dir():
        import_dataset(settings, name, paths={})
    dataset = workspace.dataset(name)
    catalog, embeddings = _embedded(settings, workspace, dataset)
    repeats = not settings.serve.pipeline.exclude_seen
    words: Mapping[str, np.ndarray] = {}
    if summaries is not None:
        if validation or repeats:
            raise OperatorError("summaries know all but each user's last events: ask neither --validation nor a shop")
        texts = summaries_before_test(summaries, dataset=name)
        words, seeds = summary_vectors(texts, workspace.encoder().encode), 1
    splits: Mapping[str, Splits]
    if repeats:
        splits = {question: partial(_same, split) for question, split in _baskets(dataset.events, validation).items()}
    else:
        splits = {NEXT_ITEM: lru_cache(partial(_leave_last, dataset.events, validation, words))}
    driver = _Driver(settings, catalog, embeddings, tell)
    try:
        yardsticks = shop_baselines(catalog) if repeats else baselines(catalog)
        methods = {**yardsticks, **driver.methods(ablate=ablate, summarised=bool(words))}
        if repeats:
            # One training log serves all questions, so each method is fitted once.
            methods = {name: once(build) for name, build in methods.items()}
        asked = (0,) if repeats else tuple(range(seeds))
        questions, states = {}, {}
        for question, split in splits.items():
            tell(question)
            questions[question] = evaluate(split, catalog, methods, seeds=asked, progress=tell)
        if validation and not repeats and catalog.label_names:
            known, encoder, merged = validation_log(dataset.events), workspace.encoder(), methods[MERGED]
            for question, events in DECLARED.items():
                tell(question)
                folds = lru_cache(strangers(known, catalog, encoder, events=events))
                both = {UNDECLARED: undeclared(merged), MERGED: merged}
                questions[question] = evaluate(folds, catalog, both, seeds=FOLDS, progress=tell)
        if ablate:
            by_state = driver.weightings()
            for label, part in _by_state(splits, settings.models.retrieval.stale_after_s):
                states[label] = evaluate(part, catalog, by_state, seeds=asked, progress=tell)
        return Evaluation(questions, states)
    finally:
        driver.close()


def _embedded(settings: Settings, workspace: Workspace, dataset: Dataset) -> tuple[ItemCatalog, np.ndarray]:
    """Return the catalog and the item vectors of a data set, made where they are not there."""
    artifacts = workspace.artifacts()
    builder = Builder(
        artifacts,
        settings=settings.pipelines.model_copy(update={"train_ranker": False}),
        retrieval=settings.models.retrieval,
        encoder=workspace.encoder,
        encoder_uri=settings.models.encoder.uri,
    )
    release = builder.run(dataset).release
    catalog = ItemCatalog(artifacts.get(release.artifacts["catalog"]).path)
    file = artifacts.get(release.artifacts["embeddings"]).path / EMBEDDINGS_FILE
    return catalog, np.load(file, allow_pickle=False)


def _leave_last(events: EventLog, validation: bool, words: Mapping[str, np.ndarray], seed: int) -> Split:
    split = leave_last(validation_log(events, tie_seed=seed) if validation else events, tie_seed=seed)
    if not words:
        return split
    cases = [
        replace(case, user=replace(case.user, intent=words.get(case.user_id), intent_ms=case.now_ms))
        for case in split.cases
    ]
    return Split(split.train, cases)


def _same(split: Split, seed: int) -> Split:
    return split


def _baskets(events: EventLog, validation: bool) -> dict[str, Split]:
    """Return the cases of each question over the very same training log; they hold everything a user ever took."""
    share = 0.9
    if validation:
        events = events.take(events.timestamps_ms < moment_of(events, 0.9))
        share = 0.8 / 0.9
    every = split_by_time(events, share=share, repeats=True, limit=_EVERYTHING)
    new = split_by_time(events, share=share, limit=_EVERYTHING)
    cold = split_by_time(events, share=share, repeats=True, cold=True)
    return {NEW: Split(every.train, new.cases), REPEAT: every, COLD: Split(every.train, cold.cases)}


def _by_state(splits: Mapping[str, Splits], stale_after_s: float) -> Iterator[tuple[str, Splits]]:
    """Yield every question by the state of the user; users who are new anyway are a question of their own."""
    for question, split in splits.items():
        if question == COLD:
            continue
        for name, _ in slices(split(0), stale_after_s=stale_after_s):
            yield f"{question}, {name}", partial(_part, split, name, stale_after_s)


def _part(split: Splits, name: str, stale_after_s: float, seed: int) -> Split:
    whole = split(seed)
    return dict(slices(whole, stale_after_s=stale_after_s)).get(name, Split(whole.train, []))


class _Driver:
    """Builds methods that answer through the pipeline."""

    def __init__(self, settings: Settings, catalog: ItemCatalog, embeddings: np.ndarray, tell: Tell) -> None:
        self._settings = settings
        self._catalog = catalog
        self._embeddings = embeddings
        self._tell = tell
        self._fits: dict[int, tuple[EventLog, Behaviour, Statistics]] = {}
        self._loop = asyncio.new_event_loop()
        self._pool = ThreadPoolExecutor(max_workers=1)
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
            found[FUSED] = self._build(self._settings.models.retrieval, ranked=True)
        return found

    def weightings(self) -> dict[str, Build]:
        """Return merged retrieval with weights by the user's state, and with one weighting for everybody."""
        retrieval = self._settings.models.retrieval
        return {BY_STATE: self._build(retrieval), ONE_WEIGHTING: self._build(uniform(retrieval))}

    def close(self) -> None:
        """Release the loop and the thread."""
        self._pool.shutdown()
        self._loop.close()

    def _build(self, retrieval: RetrievalSettings, *, ranked: bool = False, heard: float = 0.0) -> Build:
        def build(train: EventLog) -> Recommend:
            behaviour, statistics = self._fitted(train)
            ranker = self._train(train, statistics) if ranked else None
            bundle = bundle_in_memory(
                self._catalog, self._embeddings, behaviour, statistics, settings=retrieval, ranker=ranker
            )
            return self._recommend(bundle, heard)

        return build

    def _fitted(self, train: EventLog) -> tuple[Behaviour, Statistics]:
        """Fit what every variant of the sources reads, once per training log."""
        from models.behaviour.behaviour import fit_behaviour
        from models.behaviour.statistics import fit_statistics

        if id(train) not in self._fits:
            of = self._settings.pipelines
            behaviour = fit_behaviour(train, self._catalog, of.behaviour, vectors=self._embeddings)
            statistics = fit_statistics(train, self._catalog, half_life_days=of.popularity_half_life_days)
            # The log is kept too: an id says nothing about an object that is gone.
            self._fits[id(train)] = (train, behaviour, statistics)
        _, behaviour, statistics = self._fits[id(train)]
        return behaviour, statistics

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

    def _recommend(self, bundle: ReleaseBundle, heard: float) -> Recommend:
        given = _GivenFeatures(heard)

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
    """A `FeatureFetcher` that returns the user of the case at hand, with as many events as a store would hold.

    What the case says of interests in words is shortened to `heard` of its length; 0 leaves it out.
    """

    def __init__(self, heard: float) -> None:
        self.user, self._heard = ANONYMOUS, np.float32(heard)

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        user = self.user.take(np.arange(len(self.user))[-RECENT_EVENTS:])
        intent = user.intent if self._heard and user.intent is not None else None
        return replace(user, intent=None if intent is None else intent * self._heard)


__all__ = [
    "BEST_BASELINE",
    "COLD",
    "DATASETS",
    "DECLARED",
    "FUSED",
    "MERGED",
    "NEW",
    "NEXT_ITEM",
    "REPEAT",
    "SUMMARISED",
    "UNDECLARED",
    "Evaluation",
    "evaluate_dataset",
]
