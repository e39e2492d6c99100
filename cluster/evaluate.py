"""Drives the real `RecommendationPipeline` with in-process stages through the evaluation protocol.

Every method is fitted on the training part of a split only; the ranker too is trained there, once per tie seed,
so that no held-out event ever reaches it. Where settings say that touched items may come again, the question is the
next basket instead of the next item. Called by the `quality` benchmark behind `raycommend evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import Pace, say
from cluster.errors import OperatorError
from cluster.evaluate_driver import FUSED, MERGED, SUMMARISED, Driver, Splits, Tell
from cluster.interests import summaries_before_test, summary_vectors
from cluster.prepare import embedder_here, import_dataset
from cluster.ray_job import training_ray
from cluster.workspace import Workspace
from models.bundle import EMBEDDINGS_FILE
from models.catalog import ItemCatalog
from models.events import EventLog
from models.media.layout import Layout
from models.vectors import open_vectors
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.evaluation.ablation import slices
from pipelines.evaluation.baselines import BEST_BASELINE, baselines, once, shop_baselines
from pipelines.evaluation.declared import FOLDS, strangers, undeclared
from pipelines.evaluation.evaluate import Report
from pipelines.evaluation.protocol import Split, leave_last, moment_of, split_by_time, validation_log
from pipelines.evaluation.tune_baskets import STRETCHES, split_of

DATASETS = {"ml-100k": "movielens-100k"}
"""Names of the evaluation that differ from the importer's."""
UNDECLARED = "nothing declared"
NEXT_ITEM, NEW, REPEAT, COLD = "next item", "new", "repeat", "cold"
"""The questions: the next item; or of the next basket what is new to the user, or all of it, or a new user's first."""
DECLARED = {"declared": False, "declared, 1-4 events": True}
"""What only validation asks: what somebody new likes next who declared the labels of what they liked."""
_EVERYTHING = 1 << 31


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Reports by question; with ablation also by question and state of the user (`new, 1-4 events`).

    `trainings` are the metrics of the rankers that were trained for it.
    """

    questions: Mapping[str, Report]
    states: Mapping[str, Report]
    trainings: Sequence[Mapping[str, Any]]


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
    dataset = dataset_named(settings, workspace, name)
    catalog, embeddings, layout = embedded(settings, workspace, dataset)
    repeats = not settings.serve.pipeline.exclude_seen
    words: Mapping[str, np.ndarray] = {}
    if summaries is not None:
        if validation or repeats:
            raise OperatorError("summaries know all but each user's last events: ask neither --validation nor a shop")
        texts = summaries_before_test(summaries, dataset=dataset.name)
        words, seeds = summary_vectors(texts, workspace.encoder().encode), 1
    splits: Mapping[str, Splits]
    if repeats:
        splits = {question: partial(_same, split) for question, split in _baskets(dataset.events, validation).items()}
    else:
        splits = {NEXT_ITEM: lru_cache(partial(_leave_last, dataset.events, validation, words))}
    with (
        training_ray(settings, say=tell),
        Pace(say) as pace,
        closing(Driver(settings, catalog, embeddings, layout, tell, pace)) as driver,
    ):
        yardsticks = shop_baselines(catalog) if repeats else baselines(catalog)
        methods = {**yardsticks, **driver.methods(ablate=ablate, summarised=bool(words))}
        if repeats:
            # One training log serves all questions, so each method is fitted once.
            methods = {name: once(build) for name, build in methods.items()}
        asked = (0,) if repeats else tuple(range(seeds))
        questions = {question: driver.ask(question, split, methods, asked) for question, split in splits.items()}
        if validation and repeats:
            known_by = {name: build for name, build in methods.items() if name in yardsticks or name == MERGED}
            for stretch in STRETCHES[:-1]:  # the last one is `NEW`
                question, split = named(stretch), split_of(dataset.events, stretch, limit=_EVERYTHING)
                questions[question] = driver.ask(question, partial(_same, split), known_by, asked)
        if validation and not repeats and catalog.label_names:
            known, encoder, merged = validation_log(dataset.events), workspace.encoder(), methods[MERGED]
            for question, events in DECLARED.items():
                folds = lru_cache(strangers(known, catalog, encoder, events=events))
                both = {UNDECLARED: undeclared(merged), MERGED: merged}
                questions[question] = driver.ask(question, folds, both, FOLDS)
        states = {}
        if ablate:
            by_state = driver.weightings()
            for label, part in _by_state(splits, settings.models.retrieval.stale_after_s):
                states[label] = driver.ask(label, part, by_state, asked)
        return Evaluation(questions, states, driver.trainings)


def named(stretch: tuple[float, float]) -> str:
    """Return what the question about an earlier stretch of time is called."""
    return f"{NEW}, {stretch[0]:.0%} to {stretch[1]:.0%}"


def dataset_named(settings: Settings, workspace: Workspace, name: str) -> Dataset:
    """Return a data set by its name here or the importer's, imported first where that needs no path."""
    name = DATASETS.get(name, name)
    if not workspace.dataset_folder(name).is_dir():
        import_dataset(settings, name, paths={})
    return workspace.dataset(name)


def embedded(
    settings: Settings, workspace: Workspace, dataset: Dataset
) -> tuple[ItemCatalog, np.ndarray, Layout | None]:
    """Return the catalog and the item vectors of a data set, made where they are not there, as `build` makes them.

    The layout says where pictures and sounds lie in the vectors; None for texts alone.
    """
    artifacts = workspace.artifacts()
    builder = Builder(
        artifacts,
        settings=settings.pipelines.model_copy(update={"train_ranker": False}),
        retrieval=settings.models.retrieval,
        encoder=workspace.encoder,
        encoder_uri=settings.models.encoder.uri,
        # The artifacts are those that `build` finds again, so they must be made of all that the settings say.
        embedder=embedder_here(settings),
    )
    release = builder.run(dataset).release
    catalog = ItemCatalog(artifacts.get(release.artifacts["catalog"]).path)
    vectors = artifacts.get(release.artifacts["embeddings"])
    layout = Layout.from_json(vectors.meta.get("layout"))
    return catalog, np.asarray(open_vectors(vectors.path / EMBEDDINGS_FILE)), layout


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
    "embedded",
    "evaluate_dataset",
]
