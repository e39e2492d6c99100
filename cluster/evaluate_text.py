"""Judges the trained text ranker on a catalog with long texts: alone and fused, against retrieval and the bi-encoder.

Trained on what was known when the test rows of amazon-industrial began; asked for the next item of users whose next
item is among the bi-encoder's best fifty, in the order of every method, and of everybody over the list that is served.
Trained rankers are kept in the state folder, so that another question to the same one does not train again. Called by
the `quality` benchmark behind `evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.evaluate import embedded
from cluster.ray_job import job_ray
from cluster.text_questions import DEPTH, Asker, Floats, Question, gains
from cluster.workspace import Workspace
from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.candidates import Source
from models.catalog import ItemCatalog
from models.events import EventLog
from models.index import FlatIndex
from models.media.layout import Layout
from models.rankers.fusion import FusionFeatures
from models.rankers.load import load_ranker
from models.rankers.port import CrossEncoder
from models.rankers.text_fusion import FusedTextRanker, TextFusion
from models.retrieval.engine import RetrievalEngine
from models.retrieval.settings import RetrievalSettings
from pipelines.digests import digest_events
from pipelines.evaluation.ablation import only
from pipelines.held import held_folder, sweep
from pipelines.importers.amazon import TEST_MS, VALID_END_MS, VALID_MS
from pipelines.makers import key_of
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text import Origin, Sources, train_text_ranker

DATASET = "amazon-industrial"
BI_ENCODER, RETRIEVAL, ALONE, FUSED = "bi-encoder similarity", "retrieval order", "text alone", "text fused"
WITHOUT_TEXT = "fused without text"
"""The weights of the fusion, fitted on the same lists without the text logit: what is above them, reading brought."""
STUDENT_ALONE, STUDENT_FUSED = "student alone", "student fused"
BASELINES, OURS = (BI_ENCODER, RETRIEVAL), (ALONE, FUSED)
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """NDCG@10 per user by method, users in one order, and what the trainings said of themselves."""

    ndcg: Mapping[str, Floats]
    """Over the bi-encoder's candidates, of users whose next item is among them."""
    served: Mapping[str, Floats]
    """Over the candidates of all sources, of everybody."""
    trainings: Mapping[str, Mapping[str, Any]]


def known_at_test(log: EventLog) -> EventLog:
    """Return what the table before the test rows tells.

    Pasts that only test rows tell are left out: those users may have taken a first item after the test rows began.
    """
    return log.take(log.timestamps_ms < VALID_END_MS)


def evaluate_text(settings: Settings, *, users: int, student: int | None, seed: int, tell: Tell) -> TextEvaluation:
    """Train where that was not done yet, then ask `users` users; `student` layers more are distilled and asked.

    Without `pipelines.train_ranker` only the baselines are asked.
    Raises OperatorError when the data set is not imported or too small.
    """
    workspace = Workspace(settings)
    if not workspace.dataset_folder(DATASET).is_dir():
        raise OperatorError(f"no data set {DATASET}: run `raycommend import {DATASET} --path FOLDER` first")
    dataset = workspace.dataset(DATASET)
    catalog, embeddings, layout = embedded(settings, workspace, dataset)
    train = known_at_test(dataset.events)
    trainer = _Trainer(settings, workspace, train, catalog, embeddings, layout, seed, tell)
    folders = {}
    if settings.pipelines.train_ranker:
        of = settings.pipelines.text
        with job_ray(settings, say=tell) if of.workers > 1 else nullcontext():
            folders["text"] = trainer.trained(None, of)
            if student is not None:
                small = of.model_copy(update={"layers": student, "frozen_layers": 0})
                folders["student"] = trainer.trained(folders["text"], small)
    statistics = fit_statistics(train, catalog, half_life_days=settings.pipelines.popularity_half_life_days)
    behaviour = fit_behaviour(train, catalog, settings.pipelines.behaviour, vectors=embeddings)

    def engine(retrieval: RetrievalSettings) -> RetrievalEngine:
        parts = (FlatIndex(embeddings), behaviour, statistics, retrieval)
        return RetrievalEngine(catalog, embeddings, *parts, layout=layout)

    of_settings = settings.models.retrieval
    similar, merged = engine(only(of_settings, Source.semantic)), engine(of_settings)
    asker = Asker(catalog, similar, merged, dataset.events, TEST_MS, seed)
    alike, served = asker.like_the_past(users), asker.served(users)
    if not alike:
        raise OperatorError(f"{DATASET}: no user has a next item that the bi-encoder finds")
    tell(f"{len(alike)} users whose next item is among the bi-encoder's best {DEPTH}")
    found = sum(q.place >= 0 for q in served)
    tell(f"{len(served)} users, {found} of whom the list of {DEPTH} that is served holds what they took")
    ndcg = {
        BI_ENCODER: gains(alike, [q.similarity for q in alike if q.similarity is not None]),
        RETRIEVAL: gains(alike, [q.candidates.scores for q in alike]),
    }
    as_served = {RETRIEVAL: gains(served, [q.candidates.scores for q in served])}
    for (name, folder), (alone, fused) in zip(
        folders.items(), ((ALONE, FUSED), (STUDENT_ALONE, STUDENT_FUSED)), strict=False
    ):
        tell(f"{name}: {sum(len(q.candidates) for q in [*alike, *served] if q.place >= 0)} pairs")
        # Not by the engine that happens to be fastest now: near ties would fall another way when it is asked again.
        ranker = load_ranker(folder, catalog, embeddings, statistics, layout=layout, compute="transformers")
        if not isinstance(ranker, FusedTextRanker):
            raise OperatorError(f"{folder}: not what a training wrote; remove it, and it is trained again")
        for asked, by in ((alike, ndcg), (served, as_served)):
            by[alone], by[fused] = _asked(ranker.text, asked), _asked(ranker, asked)
    if "text" in folders:
        features = FusionFeatures(catalog, embeddings, statistics, layout=layout)
        without = TextFusion.of(_metrics(folders["text"])["without_text"])
        for asked, by in ((alike, ndcg), (served, as_served)):
            by[WITHOUT_TEXT] = _fused_without(without, features, asked)
    return TextEvaluation(ndcg, as_served, {name: _metrics(folder) for name, folder in folders.items()})


def _asked(ranker: CrossEncoder, asked: Sequence[Question]) -> Floats:
    """Return the gain per question; what no order can help is not read. Scores of a profile are kept in between."""
    nothing = np.empty(0, np.float32)
    return gains(asked, [ranker.score(q.query, q.candidates) if q.place >= 0 else nothing for q in asked])


def _fused_without(weights: TextFusion, features: FusionFeatures, asked: Sequence[Question]) -> Floats:
    """Return the gain per question of the weights over what retrieval and the catalog know."""
    rows = (features.build(q.query, q.candidates) for q in asked)
    return gains(asked, [weights.logits(np.zeros(len(of), np.float32), of) for of in rows])


@dataclass(frozen=True)
class _Trainer:
    """Trains rankers and keeps them by everything that decides them."""

    settings: Settings
    workspace: Workspace
    train: EventLog
    catalog: ItemCatalog
    embeddings: npt.NDArray[np.float32]
    layout: Layout | None
    seed: int
    tell: Tell

    def trained(self, teacher: Path | None, text: TextTrainingSettings) -> Path:
        """Return the folder of a trained ranker, trained now where it is not there."""
        of = self.settings.pipelines
        inputs = {
            "text": text.deciding(),
            "training": of.training.deciding(),
            "retrieval": self.settings.models.retrieval.model_dump(),
            "behaviour": of.behaviour.model_dump(),
            "half_life_days": of.popularity_half_life_days,
            "encoder": self.settings.models.encoder.uri,
            "teacher": None if teacher is None else teacher.name,
            "events": digest_events(self.train),
            "seed": self.seed,
            # Rankers kept by a version that did not judge both cannot be asked for them.
            "judged": [FUSED, WITHOUT_TEXT],
        }
        key = key_of(inputs, self.train, self.catalog, self.embeddings, self.layout)
        final = self.workspace.root / "evaluations" / key
        sweep(final.parent.glob("*.draft"))
        if final.is_dir():
            return final
        said: set[str] = set()

        def told(step: str, share: float) -> None:
            if step not in said:
                said.add(step)
                self.tell(step)

        checkpoint = Checkpoint.under(self.workspace.training, key)
        sources = Sources(self.settings.models.retrieval, of.behaviour, of.popularity_half_life_days, self.layout)
        with held_folder(final.with_suffix(".draft")) as draft:
            metrics = train_text_ranker(
                self.train,
                self.catalog,
                self.embeddings,
                draft,
                Origin(teacher or self.workspace.encoder_folder(), teacher, sources_until_ms=VALID_MS - 1),
                settings=text,
                training=of.training,
                sources=sources,
                seed=self.seed,
                checkpoint=checkpoint,
                progress=told,
            )
            if "steps" not in metrics:
                raise OperatorError(f"{DATASET}: no text ranker was trained: {metrics['reason']}")
            draft.rename(final)
        checkpoint.clear()
        return final


def _metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found
