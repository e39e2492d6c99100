"""Judges the trained text ranker on a catalog with long texts: alone and fused, against retrieval and the bi-encoder.

Trained on what was known when the test rows of amazon-industrial began; asked for the next item of users whose next
item is among the bi-encoder's best fifty, in the order of every method. Trained rankers are kept in the state folder,
so that another question to the same one does not train again. Called by the `quality` benchmark behind `evaluate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.evaluate import embedded
from cluster.ray_job import job_ray
from cluster.workspace import Workspace
from models.behaviour.behaviour import fit_behaviour
from models.behaviour.replay import UserHistory, histories
from models.behaviour.statistics import Statistics, fit_statistics
from models.candidates import Candidates, Source
from models.catalog import ItemCatalog
from models.events import EventLog
from models.index import FlatIndex
from models.media.layout import Layout
from models.rankers.load import load_ranker
from models.rankers.text_fusion import FusedTextRanker
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
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
STUDENT_ALONE, STUDENT_FUSED = "student alone", "student fused"
BASELINES, OURS = (BI_ENCODER, RETRIEVAL), (ALONE, FUSED)
DEPTH = 50
Floats = npt.NDArray[np.float64]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """NDCG@10 per user by method, users in one order, and what the trainings said of themselves."""

    ndcg: Mapping[str, Floats]
    trainings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Question:
    """One request, its candidates in retrieval order, the bi-encoder's scores of them, and which was taken."""

    query: RetrievalQuery
    candidates: Candidates
    similarity: npt.NDArray[np.float32]
    place: int


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
    asked = _questions(settings, train, dataset.events, catalog, embeddings, layout, statistics, users, seed)
    tell(f"{len(asked)} users whose next item is among the bi-encoder's best {DEPTH}")
    ndcg = {
        BI_ENCODER: _gains(asked, [q.similarity for q in asked]),
        RETRIEVAL: _gains(asked, [q.candidates.scores for q in asked]),
    }
    for (name, folder), (alone, fused) in zip(
        folders.items(), ((ALONE, FUSED), (STUDENT_ALONE, STUDENT_FUSED)), strict=False
    ):
        tell(f"{name}: {len(asked) * DEPTH} pairs")
        ranker = load_ranker(folder, catalog, embeddings, statistics, layout=layout)
        if not isinstance(ranker, FusedTextRanker):
            raise OperatorError(f"{folder}: not what a training wrote; remove it, and it is trained again")
        # Scores of a profile are kept, so that the fused one reads nothing again.
        ndcg[alone] = _gains(asked, [ranker.text.score(q.query, q.candidates) for q in asked])
        ndcg[fused] = _gains(asked, [ranker.score(q.query, q.candidates) for q in asked])
    return TextEvaluation(ndcg, {name: _metrics(folder) for name, folder in folders.items()})


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
            "training": of.training.model_dump(),
            "retrieval": self.settings.models.retrieval.model_dump(),
            "behaviour": of.behaviour.model_dump(),
            "half_life_days": of.popularity_half_life_days,
            "encoder": self.settings.models.encoder.uri,
            "teacher": None if teacher is None else teacher.name,
            "events": digest_events(self.train),
            "seed": self.seed,
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


def _questions(
    settings: Settings,
    train: EventLog,
    log: EventLog,
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32],
    layout: Layout | None,
    statistics: Statistics,
    users: int,
    seed: int,
) -> list[_Question]:
    """Return one test request per user, in a seeded order of users: the first whose next item the bi-encoder finds."""
    behaviour = fit_behaviour(train, catalog, settings.pipelines.behaviour, vectors=embeddings)

    def engine(retrieval: RetrievalSettings) -> RetrievalEngine:
        parts = (FlatIndex(embeddings), behaviour, statistics, retrieval)
        return RetrievalEngine(catalog, embeddings, *parts, layout=layout)

    similar, merged = engine(only(settings.models.retrieval, Source.semantic)), engine(settings.models.retrieval)
    asked: list[_Question] = []
    past = list(histories(log))
    for at in np.random.default_rng(seed).permutation(len(past)):
        if len(asked) == users:
            break
        first = int(np.searchsorted(past[at].timestamps_ms, TEST_MS))
        requests = (_question(past[at], n, similar, merged, catalog) for n in range(max(first, 1), len(past[at])))
        asked += [q for q in [next((q for q in requests if q is not None), None)] if q is not None]
    if not asked:
        raise OperatorError(f"{DATASET}: no user has a next item that the bi-encoder finds")
    return asked


def _question(
    history: UserHistory, position: int, similar: RetrievalEngine, merged: RetrievalEngine, catalog: ItemCatalog
) -> _Question | None:
    """Return what is asked just before event `position`, or None where the bi-encoder misses what was taken."""
    query = RetrievalQuery(n=DEPTH, now_ms=int(history.timestamps_ms[position]), user=history.before(position))
    found = similar.retrieve(query)
    taken = int(catalog.rows([str(history.item_ids[position])])[0])
    if taken not in found.rows:
        return None
    ordered = merged.retrieve(replace(query, only_items=tuple(catalog.item_ids(found.rows))))
    scores = dict(zip(found.rows.tolist(), found.scores.tolist(), strict=True))
    similarity = np.array([scores[row] for row in ordered.rows.tolist()], np.float32)
    return _Question(query, ordered, similarity, int(np.flatnonzero(ordered.rows == taken)[0]))


def _gains(asked: list[_Question], scores: list[npt.NDArray[np.float32]]) -> Floats:
    """Return NDCG@10 per question; a candidate with the score of what was taken counts half a place."""
    out = np.zeros(len(asked))
    for at, (question, own) in enumerate(zip(asked, scores, strict=True)):
        mine = own[question.place]
        place = int((own > mine).sum()) + (int((own == mine).sum()) - 1) / 2
        out[at] = 1 / np.log2(place + 2) if place < 10 else 0.0
    return out


def _metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found
