"""How the ranker of a release is made: trained from events, or a pretrained text model taken as it is.

A maker says what its ranker depends on, which makes a second run find the artifact of the first, and fills a folder.
Called by the builder. Knows nothing of releases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
from pipelines.digests import digest_event_set, digest_events
from pipelines.settings import PipelinesSettings
from pipelines.training.checkpoint import Checkpoint

Floats = npt.NDArray[np.float32]
RANKER_FORMAT = 4
"""Version of rankers and of their checkpoints; raise it when the code that trains or writes them changes."""


class RankerMaker(Protocol):
    """Makes one kind of ranker."""

    def inputs(self, catalog: ItemCatalog) -> dict[str, Any]:
        """Return what decides the ranker beside catalog, vectors and imported events, as plain values.

        Live events on items that `catalog` does not hold decide nothing: no training reads them.
        """
        ...

    def outdated(self, ref: str, meta: Mapping[str, Any]) -> bool:
        """Whether a ranker made of the same inputs must be made again all the same."""
        ...

    def make(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: Floats, to: Path, *, layout: Layout | None
    ) -> Mapping[str, Any]:
        """Fill the folder `to` and return what the manifest says: metrics, data window, parent.

        `layout` says where pictures and sounds lie in `embeddings`; None for texts alone.
        """
        ...


@dataclass(frozen=True)
class CompressedTraining:
    """Trains the compressed ranker, against the one served now where there is one.

    `live` are events that came in since the import. With `since_ms` training goes on from `served`, on later events.
    """

    settings: PipelinesSettings
    retrieval: RetrievalSettings
    progress: Progress = silent
    live: EventLog = field(default_factory=EventLog.empty)
    served: Artifact | None = None
    since_ms: int | None = None
    checkpoint: Callable[[str], Checkpoint] | None = None
    """From a digest of everything that decides the outcome to where an interrupted training is kept."""

    def inputs(self, catalog: ItemCatalog) -> dict[str, Any]:
        """See `RankerMaker.inputs`."""
        # A ranker reads its features by name: another set of names is another ranker.
        made_by = {"training": self.settings.training.deciding(), "features": list(FEATURE_NAMES)}
        going_on = {} if self.since_ms is None else {"since_ms": self.since_ms, "from": self._ref}
        return {**sources(self.settings, self.retrieval), **made_by, **live_inputs(self.live, catalog), **going_on}

    def outdated(self, ref: str, meta: Mapping[str, Any]) -> bool:
        """A ranker that was compared with another one than is served now has no verdict that counts."""
        return ref != self._ref and meta.get("parent") != self._ref

    def make(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: Floats, to: Path, *, layout: Layout | None
    ) -> Mapping[str, Any]:
        """See `RankerMaker.make`."""
        from pipelines.training.train import Incumbent, train_ranker

        log = with_live(dataset.events, self.live, catalog)
        kept = None if self.checkpoint is None else self.checkpoint(self._key(log, catalog, embeddings, layout))
        metrics = train_ranker(
            log,
            catalog,
            embeddings,
            to,
            settings=self.settings.training,
            retrieval=self.retrieval,
            behaviour=self.settings.behaviour,
            half_life_days=self.settings.popularity_half_life_days,
            layout=layout,
            seed=self.settings.seed,
            incumbent=None if self.served is None else Incumbent(self.served.path, self.since_ms),
            checkpoint=kept,
            progress=lambda step, share: self.progress(step, round(share * 100), 100),
        )
        return {"metrics": metrics, "parent": self._ref, **window(log)}

    @property
    def _ref(self) -> str | None:
        return None if self.served is None else self.served.ref

    def _key(self, log: EventLog, catalog: ItemCatalog, embeddings: Floats, layout: Layout | None) -> str:
        return key_of({**self.inputs(catalog), "against": self._ref}, log, catalog, embeddings, layout)


@dataclass(frozen=True)
class TakenText:
    """Takes a pretrained text ranker as it is: `uri` names it, `fetch` brings its folder."""

    settings: PipelinesSettings
    retrieval: RetrievalSettings
    uri: str
    fetch: Callable[[], Path]

    def inputs(self, catalog: ItemCatalog) -> dict[str, Any]:
        """See `RankerMaker.inputs`."""
        taken = {"text": self.uri, "cases": self.settings.text_validation_cases}
        return {**sources(self.settings, self.retrieval), **taken}

    def outdated(self, ref: str, meta: Mapping[str, Any]) -> bool:
        """Never: the same model is the same ranker."""
        return False

    def make(
        self, dataset: Dataset, catalog: ItemCatalog, embeddings: Floats, to: Path, *, layout: Layout | None
    ) -> Mapping[str, Any]:
        """See `RankerMaker.make`."""
        from pipelines.text_ranker import take_text_ranker

        metrics = take_text_ranker(
            self.fetch(),
            dataset.events,
            catalog,
            embeddings,
            to,
            retrieval=self.retrieval,
            behaviour=self.settings.behaviour,
            half_life_days=self.settings.popularity_half_life_days,
            layout=layout,
            cases=self.settings.text_validation_cases,
            seed=self.settings.seed,
        )
        return {"metrics": metrics, "parent": None, **window(dataset.events)}


def sources(settings: PipelinesSettings, retrieval: RetrievalSettings) -> dict[str, Any]:
    """Return what decides the lists that a ranker is trained on and judged by."""
    return {
        "behaviour": settings.behaviour.model_dump(),
        "retrieval": retrieval.model_dump(),
        "half_life_days": settings.popularity_half_life_days,
        "seed": settings.seed,
    }


def with_live(imported: EventLog, live: EventLog, catalog: ItemCatalog) -> EventLog:
    """Return the imported events and those that came in since, by time; events on items nobody knows are left out."""
    if not len(live):
        return imported
    known = known_events(live, catalog)
    both = (
        np.concatenate([getattr(imported, c), getattr(known, c)])
        for c in ("user_ids", "item_ids", "types", "values", "timestamps_ms")
    )
    return EventLog(*both).sorted_by_time()


def known_events(log: EventLog, catalog: ItemCatalog) -> EventLog:
    """Return the events on items that `catalog` holds: those that count as learned, as later and as changed."""
    return log.take(catalog.rows(log.item_ids.tolist()) >= 0)


def window(log: EventLog) -> dict[str, Any]:
    """Return the first and last time of the events that were learned from."""
    times = log.timestamps_ms
    return {"window_ms": [int(times[0]), int(times[-1])] if len(times) else []}


def key_of(
    inputs: Mapping[str, Any], log: EventLog, catalog: ItemCatalog, embeddings: Floats, layout: Layout | None
) -> str:
    """Return a short digest of everything that decides the outcome of a training, `RANKER_FORMAT` included."""
    import hashlib
    import json

    parts = {"format": RANKER_FORMAT, "layout": None if layout is None else layout.to_json(), **layout_inputs(layout)}
    digest = hashlib.sha256(json.dumps([dict(inputs), parts], sort_keys=True, default=str).encode())
    digest.update(digest_events(log).encode())
    # Texts, labels and numbers too: a training reads them beside the vectors.
    digest.update(catalog.digest().encode())
    digest.update(np.ascontiguousarray(embeddings).tobytes())
    return digest.hexdigest()[:24]


def layout_inputs(layout: Layout | None) -> dict[str, Any]:
    """Return what pictures and sounds add to the inputs: rankers made when texts were not told apart are outdated."""
    return {} if layout is None else {"affinities": "of the text part"}


def live_inputs(live: EventLog, catalog: ItemCatalog) -> dict[str, Any]:
    """Return what live events on items of `catalog` add to the inputs, in whatever order they come.

    A training without any is the very training that `build` does, and finds its ranker.
    """
    known = known_events(live, catalog)
    return {"live": digest_event_set(known)} if len(known) else {}
