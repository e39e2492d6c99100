"""Build: from an imported data set to a release, one artifact per step, each reused while its inputs are the same.

catalog → embeddings → index → behaviour → statistics → ranker → release. A step's inputs (references of the artifacts
before it, model, settings) are part of its manifest; a second run finds the artifact made from the same inputs
and makes nothing. Called by the command line; knows nothing of serving or of the release pointer.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.artifacts import Artifact, ArtifactError, ArtifactStore
from models.bundle import EMBEDDINGS_FILE
from models.catalog import CATALOG_FILE, ItemCatalog, write_catalog
from models.encoder import Encoder
from models.items.folded import write_folded
from models.media.layout import Layout
from models.progress import Progress, silent
from models.rankers.second import SECOND_RANKER
from models.rankers.settings import RankerSettings
from models.releases import Release, new_release
from models.retrieval.settings import RetrievalSettings
from models.vectors import open_vectors
from pipelines.dataset import Dataset, LabelsByItem, with_labels
from pipelines.digests import digest_events, digest_fold, digest_items
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import EncoderSpec
from pipelines.embedding.runners import InlineRunner
from pipelines.errors import BuildError
from pipelines.fold import Fold
from pipelines.index_shards import InlinePieces, PieceRunner, build_index, cut, forget_pieces
from pipelines.makers import RANKER_FORMAT, CompressedTraining, RankerMaker, TakenText, layout_inputs, window
from pipelines.second_ranker import Served, take_second_ranker
from pipelines.settings import PipelinesSettings

FORMATS = {
    "catalog": 1,
    "embeddings": 2,
    "index": 2,
    "behaviour": 6,
    "statistics": 1,
    "ranker": RANKER_FORMAT,
    "text_ranker": 1,
}
"""Version of each kind's files; raise it when the code that writes them changes, and they are made anew."""

Make = Callable[[Path], Mapping[str, Any]]
Outdated = Callable[[str, Mapping[str, Any]], bool]


def _never(ref: str, meta: Mapping[str, Any]) -> bool:
    return False


@dataclass(slots=True)
class StepReport:
    """What one step did."""

    name: str
    ref: str | None
    seconds: float
    reused: bool
    meta: Mapping[str, Any]


@dataclass(slots=True)
class BuildReport:
    """The release that was built, and its steps in order."""

    release: Release
    steps: list[StepReport] = field(default_factory=list)


class Builder:
    """Runs the steps of one build."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        *,
        settings: PipelinesSettings,
        retrieval: RetrievalSettings,
        encoder: Callable[[], Encoder],
        encoder_uri: str,
        text_ranker: tuple[str, Callable[[], Path]] | None = None,
        ranker: RankerMaker | None = None,
        ranking: RankerSettings | None = None,
        embedder: Embedder | None = None,
        keep_ranker_of: Release | None = None,
        served: Served | None = None,
        pieces: PieceRunner | None = None,
        progress: Progress = silent,
        on_step: Callable[[StepReport], None] = lambda _: None,
    ) -> None:
        """`encoder` is called only when there is something to embed; `retrieval` is what serving will use.

        `text_ranker` is the URI of a text ranker and how to fetch it; None trains the compressed one; `ranker` makes
        one in another way. With a cascade in `ranking` the compressed one is trained and the text ranker goes behind
        it, and never behind a text ranker that `ranker` makes. `embedder` says how vectors are made; None computes them
        here. The rankers of `keep_ranker_of`, or its lack of one, go on in place of new ones: right while vectors come
        from the same encoder. A cascade with another first ranker is compared with the one `served` now. `pieces`
        builds an index that does not fit into memory in one; None does it here, one piece after another.
        """
        self._artifacts = artifacts
        self._settings = settings
        self._retrieval = retrieval
        self._embedder = embedder or Embedder(artifacts, EncoderSpec(encoder_uri), InlineRunner(encoder))
        self._ranking = ranking or RankerSettings()
        cascade = self._ranking.cascade.candidates > 0
        self._ranker: RankerMaker = ranker or (
            CompressedTraining(settings, retrieval, progress)
            if text_ranker is None or cascade
            else TakenText(settings, retrieval, *text_ranker)
        )
        # A second text model behind a text ranker would read the very same pairs again.
        self._second = text_ranker if cascade and isinstance(self._ranker, CompressedTraining) else None
        self._pieces = pieces or InlinePieces()
        self._keep_ranker_of, self._served = keep_ranker_of, served
        self._progress = progress
        self._on_step = on_step
        self._steps: list[StepReport] = []
        self._layout: Layout | None = None

    def run(
        self,
        dataset: Dataset,
        *,
        parent: str | None = None,
        fold: Fold | None = None,
        labels: LabelsByItem | None = None,
    ) -> BuildReport:
        """Build every artifact of `dataset`, with what the item log did to it, and return the release (not published).

        `labels` are added to those of the items. Raises BuildError for a data set without items, and for an index that
        does not fit into the memory of the settings or has a damaged piece.
        """
        fold = fold or Fold()
        dataset = with_labels(fold.applied(dataset), labels or {})
        if not dataset.items:
            raise BuildError(f"{dataset.name} has no items: there is nothing to recommend; import some")
        made_of = {"items": digest_items(dataset), **digest_fold(fold)}
        catalog_step = self._step("catalog", made_of, lambda to: _write_catalog(dataset, fold, to))
        catalog = ItemCatalog(catalog_step.path)
        embedding_step = self._embed(catalog_step)
        embeddings = open_vectors(embedding_step.path / EMBEDDINGS_FILE)
        self._layout = Layout.from_json(embedding_step.meta.get("layout"))
        index_step = self._index(embedding_step, embeddings.shape)
        events = {"catalog": catalog_step.ref, "events": digest_events(dataset.events)}
        behaviour_step = self._step(
            "behaviour",
            # User clusters are made of content vectors.
            {**events, "embeddings": embedding_step.ref, **self._settings.behaviour.model_dump()},
            lambda to: self._behave(dataset, catalog, np.asarray(embeddings), to),
        )
        statistics_step = self._step(
            "statistics",
            {**events, "half_life_days": self._settings.popularity_half_life_days},
            lambda to: self._count(dataset, catalog, fold, to),
        )
        steps = [catalog_step, embedding_step, index_step, behaviour_step, statistics_step]
        references = {a.ref.split("/")[0]: a.ref for a in steps}
        notes: dict[str, Any] = {"dataset": dataset.name, "items": len(catalog), "events": len(dataset.events)}
        before = self._keep_ranker_of
        if before is not None:
            references |= {kind: ref for kind, ref in before.artifacts.items() if kind in ("ranker", SECOND_RANKER)}
            notes["ranker"] = before.notes.get("ranker", {})
            if "cascade" in before.notes:
                notes["cascade"] = before.notes["cascade"]
        elif self._settings.train_ranker:
            notes["ranker"] = self._rank(dataset, catalog, embeddings, {**events, "embeddings": embedding_step.ref})
            # Measured on validation events: a ranker below retrieval order is kept, but not switched on.
            if notes["ranker"].get("switch_on"):
                references["ranker"] = str(self._steps[-1].ref)
                if self._second is not None:
                    notes["cascade"] = self._cascade(dataset, catalog, embeddings, references)
                    if notes["cascade"].get("switch_on"):
                        references[SECOND_RANKER] = str(self._steps[-1].ref)
        release = new_release(references, parent=parent, item_log_seq=fold.sequence, **notes)
        return BuildReport(release, self._steps)

    def _rank(self, dataset: Dataset, catalog: ItemCatalog, embeddings: Any, data: Mapping[str, Any]) -> dict[str, Any]:
        """Make the ranker and return how it did."""
        inputs, maker = {**data, **self._ranker.inputs(catalog), **layout_inputs(self._layout)}, self._ranker
        ranker = self._step(
            "ranker",
            inputs,
            lambda to: maker.make(dataset, catalog, np.asarray(embeddings), to, layout=self._layout),
            outdated=maker.outdated,
        )
        return dict(ranker.meta.get("metrics", {}))

    def _cascade(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: Any, made: Mapping[str, str]
    ) -> dict[str, Any]:
        """Take the second ranker of a cascade and return how it did behind the first."""
        assert self._second is not None
        uri, fetch = self._second
        of = self._settings
        cases = of.text_validation_cases
        inputs = {
            "first": made["ranker"],
            "behaviour": made["behaviour"],
            "text": uri,
            "cases": cases,
            "cascade": self._ranking.cascade.model_dump(),
        }
        served = None if self._served is None or self._served.first.ref == made["ranker"] else self._served
        if served is not None:
            inputs["served"] = [served.first.ref, served.second.ref]

        def make(to: Path) -> Mapping[str, Any]:
            metrics = take_second_ranker(
                fetch(),
                self._artifacts.get(made["ranker"]).path,
                dataset.events,
                catalog,
                np.asarray(embeddings),
                to,
                ranking=self._ranking,
                retrieval=self._retrieval,
                behaviour=of.behaviour,
                half_life_days=of.popularity_half_life_days,
                layout=self._layout,
                cases=cases,
                seed=of.seed,
                served=served,
            )
            return {"metrics": metrics, **window(dataset.events)}

        return dict(self._step(SECOND_RANKER, inputs, make).meta.get("metrics", {}))

    def _step(
        self, kind: str, inputs: Mapping[str, Any], make: Make, *, anew: bool = False, outdated: Outdated = _never
    ) -> Artifact:
        started = time.perf_counter()
        versioned = {**inputs, "format": FORMATS[kind]}
        key = hashlib.sha256(json.dumps(versioned, sort_keys=True, default=str).encode()).hexdigest()
        found = None if anew else self._find(kind, key, outdated)
        if found is None:
            try:
                with tempfile.TemporaryDirectory(prefix=f"raycommend-{kind}-") as folder:
                    meta = make(Path(folder))
                    body = {"inputs": dict(inputs), "inputs_key": key, **meta}
                    ref = self._artifacts.put(kind, Path(folder), json.loads(json.dumps(body, default=str)))
                artifact = self._artifacts.get(ref)
            except OSError as error:
                raise ArtifactError(f"{kind}: cannot be written ({error}); what is served stays as it is") from error
        else:
            artifact = found
        seconds = time.perf_counter() - started
        report = StepReport(kind, artifact.ref, seconds, found is not None, artifact.meta)
        self._steps.append(report)
        self._on_step(report)
        return artifact

    def _find(self, kind: str, key: str, outdated: Outdated) -> Artifact | None:
        for ref in self._artifacts.list(kind):
            try:
                meta = self._artifacts.meta(ref)
                if meta.get("inputs_key") == key and not outdated(ref, meta):
                    return self._artifacts.get(ref)
            except ArtifactError:
                # Damaged at its origin: no node can load it, so it is taken away and made anew from the same inputs.
                self._artifacts.discard(ref)
        return None

    def _embed(self, catalog: Artifact) -> Artifact:
        embedder = self._embedder
        inputs = embedder.inputs(catalog.ref)
        made = self._step(
            "embeddings", inputs, lambda to: embedder.embed(catalog, to, self._progress), anew=embedder.full
        )
        if not self._steps[-1].reused:
            embedder.forget(catalog)
        return made

    def _index(self, embeddings: Artifact, shape: tuple[int, int]) -> Artifact:
        """Build the index, in pieces where the memory of the settings asks for it."""
        recall, memory = self._settings.index_recall, self._settings.index_memory_bytes
        # As `reembed` cuts it, whoever builds: else `build` and `reembed` would make each other's index anew.
        at_once = self._settings.embedding.workers
        inputs: dict[str, Any] = {"embeddings": embeddings.ref, "recall": recall}
        least = self._settings.index_pieces
        pieces = len(cut(*shape, memory_bytes=memory, at_once=at_once, at_least=least))
        if pieces > 1:
            inputs["pieces"] = pieces

        def make(to: Path) -> Mapping[str, Any]:
            of: dict[str, Any] = {"recall": recall, "memory_bytes": memory, "at_once": at_once, "at_least": least}
            return build_index(self._artifacts, embeddings, to, **of, runner=self._pieces, progress=self._progress)

        made = self._step("index", inputs, make)
        if not self._steps[-1].reused:
            forget_pieces(self._artifacts, embeddings, made.meta, recall=recall)
        return made

    def _behave(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: npt.NDArray[np.float32], to: Path
    ) -> Mapping[str, Any]:
        from models.behaviour.behaviour import fit_behaviour

        fitted = fit_behaviour(dataset.events, catalog, self._settings.behaviour, vectors=embeddings)
        fitted.save(to)
        return {"events": len(dataset.events), "user_clusters": len(fitted.clusters), **window(dataset.events)}

    def _count(self, dataset: Dataset, catalog: ItemCatalog, fold: Fold, to: Path) -> Mapping[str, Any]:
        from models.behaviour.statistics import fit_statistics

        half_life = self._settings.popularity_half_life_days
        counted = fit_statistics(dataset.events, catalog, half_life_days=half_life)
        # An item that nobody took yet is as old as its first appearance in the log, or it would never be fresh.
        appeared = [(catalog.row(name), live.changed_ms) for name, live in fold.items.items()]
        counted.appeared({row: at for row, at in appeared if row is not None}).save(to)
        return {"events": len(dataset.events), **window(dataset.events)}


def _write_catalog(dataset: Dataset, fold: Fold, to: Path) -> Mapping[str, Any]:
    write_catalog(dataset.items, to / CATALOG_FILE)
    write_folded(fold.items, to)
    return {"items": len(dataset.items), "dataset": dataset.name, "licence": dataset.licence}
