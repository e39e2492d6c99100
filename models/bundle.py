"""A release loaded into one process: the mapped catalog and embeddings, and on demand the engines over them.

Arrays are memory-mapped, so that many processes of a node share one copy. Called by every stage, by training's
offline twin and by evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.artifacts import Artifact, ArtifactError, ArtifactStore
from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.port import CrossEncoder, RetrievalOrder
from models.rankers.second import SECOND_RANKER, SecondRanker
from models.releases import Release
from models.text_space import EncoderShelf, TextSpace
from models.vectors import open_vectors

if TYPE_CHECKING:
    from models.behaviour.behaviour import Behaviour
    from models.behaviour.snapshot import LiveStatistics
    from models.behaviour.statistics import Statistics
    from models.hosted import HostShare, Spread
    from models.index_port import VectorIndex
    from models.items.change import Numbered
    from models.items.live import LiveItems
    from models.rankers.settings import RankerSettings
    from models.rankers.weighing import FeatureWeights
    from models.retrieval.engine import RetrievalEngine
    from models.retrieval.filters import AttributeMasks
    from models.retrieval.settings import RetrievalSettings

EMBEDDINGS_FILE = "embeddings.npy"


@dataclass(frozen=True)
class ReleaseBundle:
    """One release in memory. `embeddings` is float32[items, dim] of unit rows, mapped.

    With `items`, the catalog is that of `alone`, the release by itself, and what the item log did to it since.
    """

    release: Release
    folders: dict[str, Path]
    catalog: ItemCatalog
    embeddings: npt.NDArray[np.float32]
    settings: RetrievalSettings
    items: LiveItems | None = None
    layout: Layout | None = None
    """Where pictures and sounds lie in the vectors; None for vectors of texts alone."""
    alone: ReleaseBundle | None = None
    ranking: RankerSettings | None = None
    """How rankers are computed here; None leaves it to their artifacts."""
    node: Path | None = None
    """Where this node keeps what it measured; None keeps nothing."""
    spread: Spread | None = None
    """How the index is spread over other processes; None holds it in this one."""
    space: TextSpace = field(default_factory=TextSpace)
    """Which encoder made the vectors, and what may be compared with them."""

    @property
    def release_id(self) -> str:
        """Name of the release."""
        return self.release.release_id

    @property
    def item_sequence(self) -> int:
        """Number of the last change of the item log that this bundle knows."""
        return self.release.item_log_seq if self.items is None else self.items.sequence

    @property
    def text_dimension(self) -> int:
        """Length of the vectors that queries and live items are embedded into."""
        return int(self.embeddings.shape[1]) if self.layout is None else self.layout.text

    def text_vectors(self, rows: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        """Return what the texts of items mean, float32[rows, text_dimension] of unit rows, whatever else they carry."""
        vectors = np.asarray(self.embeddings[rows], np.float32)
        return vectors if self.layout is None else self.layout.texts(vectors)

    def asked(self, text: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return what to search with for the vector of a text, float32[text_dimension]."""
        return text if self.layout is None else self.layout.query(text)

    def with_changes(self, changes: Iterable[Numbered]) -> ReleaseBundle:
        """Return the same release after more changes of its items, in order; this bundle stays as it is."""
        from models.items.live import LiveItems

        alone = self.alone or self
        return self.with_items((self.items or LiveItems(self.item_sequence)).after(changes, alone.catalog))

    def with_items(self, items: LiveItems) -> ReleaseBundle:
        """Return the same release with `items` in place of those it has now; this bundle stays as it is."""
        alone = self.alone or self
        vectors = items.vectors(alone.embeddings, alone.catalog, alone.layout, compares=self.space.compares)
        # Vectors that read like the array they extend; everything downstream only reads.
        embeddings: npt.NDArray[np.float32] = vectors  # type: ignore[assignment]
        grown = replace(alone, catalog=items.catalog(alone.catalog), embeddings=embeddings, items=items, alone=alone)
        if self.live is not None:
            grown.go_live(self.live)
        return grown

    @cached_property
    def withheld(self) -> npt.NDArray[np.bool_]:
        """Items that must not be recommended (hidden, unavailable, removed), bool[items]."""
        if self.items is None:
            return np.zeros(len(self.catalog), bool)
        return self.items.withheld(len(self.catalog))

    def hidden(self, row: int) -> bool:
        """Whether an item is not to be shown at all, on a page of its own either (hidden or removed)."""
        found = None if self.items is None else self.items.items.get(row)
        return found is not None and (found.hidden or found.removed)

    def removed(self, row: int) -> bool:
        """Whether an item was taken out since the release was built."""
        found = None if self.items is None else self.items.items.get(row)
        return found is not None and found.removed

    @cached_property
    def behaviour(self) -> Behaviour:
        """Transitions and collaborative weights; of the release's own items."""
        if self.alone is not None:
            return self.alone.behaviour
        from models.behaviour.behaviour import Behaviour

        return Behaviour.load(self.folders["behaviour"])

    @cached_property
    def statistics(self) -> Statistics:
        """Popularity, all-time and recent."""
        if self.alone is not None and self.items is not None:
            return self.alone.statistics.extended(self.items.first_ms(len(self.alone.catalog)))
        from models.behaviour.statistics import Statistics

        return Statistics.load(self.folders["statistics"])

    @cached_property
    def counted(self) -> Statistics:
        """The release's statistics and what was counted live since (see `go_live`): what lists and reasons go by."""
        return self.statistics

    @cached_property
    def live(self) -> LiveStatistics | None:
        """The live statistics that `go_live` was told last."""
        return None

    def go_live(self, live: LiveStatistics) -> int:
        """Count live events too, from now on; return how many of their items this catalog does not know.

        The ranker goes on reading the release's own statistics: it was trained on them. Not for two threads at once.
        """
        counted, unknown = live.added_to(self.statistics, self.catalog)
        # A cached property reads the instance's dictionary first.
        self.__dict__.update(
            live=live, counted=counted, popularity_rank=_ranks(counted.popularity), trending_rank=_ranks(counted.recent)
        )
        if "engine" in self.__dict__:
            self.engine.recount(counted)
        return unknown

    @property
    def popularity(self) -> npt.NDArray[np.float32]:
        """How often each item was taken, float32[items]."""
        return self.counted.popularity

    @cached_property
    def popularity_rank(self) -> npt.NDArray[np.int64]:
        """Rank of each item by popularity, 0 for the most popular."""
        return _ranks(self.counted.popularity)

    @cached_property
    def trending_rank(self) -> npt.NDArray[np.int64]:
        """Rank of each item by recent popularity, 0 for the most popular."""
        return _ranks(self.counted.recent)

    @cached_property
    def masks(self) -> AttributeMasks:
        """Attribute conditions as masks over the catalog."""
        from models.retrieval.filters import AttributeMasks

        return AttributeMasks(self.catalog)

    @cached_property
    def index(self) -> VectorIndex:
        """The vector index of the release's own items, in this process or with the hosts it is spread over."""
        from models.hosted import hosted_index
        from models.index import load_faiss

        folder, vectors = self.folders["index"], self.embeddings
        return (
            load_faiss(folder, vectors)
            if self.spread is None
            else hosted_index(folder, vectors, self.release_id, self.spread)
        )

    @cached_property
    def share(self) -> HostShare:
        """The part of the index that this process holds for others. Raises ValueError where it is no host."""
        from models.hosted import load_share

        of = self.alone or self
        return load_share(of.folders["index"], of.embeddings, of.spread)

    @cached_property
    def engine(self) -> RetrievalEngine:
        """All retrieval sources over this release."""
        from models.items.vectors import LiveIndex
        from models.retrieval.engine import RetrievalEngine

        parts = (self.behaviour, self.statistics, self.settings)
        if self.alone is not None:
            alone = self.alone.engine
            index = LiveIndex(alone.index, self.embeddings)  # type: ignore[arg-type]
            engine = RetrievalEngine(
                self.catalog,
                self.embeddings,
                index,
                *parts,
                withheld=self.withheld,
                grown_from=alone,
                layout=self.layout,
            )
        else:
            engine = RetrievalEngine(self.catalog, self.embeddings, self.index, *parts, layout=self.layout)
        if self.counted is not self.statistics:
            engine.recount(self.counted)
        return engine

    @cached_property
    def second(self) -> SecondRanker | None:
        """The second ranker of the cascade, where settings ask for one and the release has one."""
        asked = self.ranking is not None and self.ranking.cascade.candidates > 0
        return SecondRanker(self) if asked and SECOND_RANKER in self.folders else None

    @cached_property
    def ranker(self) -> CrossEncoder:
        """The trained ranker, or retrieval order where the release names none."""
        from models.rankers.load import load_ranker

        if "ranker" not in self.folders:
            return RetrievalOrder()
        if self.alone is not None and (grown := getattr(self.alone.ranker, "over", None)) is not None:
            # Items that change cost it no second model.
            return grown(self.catalog, self.embeddings, self.statistics)  # type: ignore[no-any-return]
        compute = self.ranking.compute if self.ranking else None
        parts = (self.folders["ranker"], self.catalog, self.embeddings, self.statistics)
        return load_ranker(*parts, layout=self.layout, compute=compute, choices=self.node)

    @cached_property
    def feature_weights(self) -> FeatureWeights | None:
        """What tells which feature weighed most in a score; None where no compressed ranker was trained."""
        from models.rankers.weighing import FeatureWeights

        if "ranker" not in self.folders:
            return None
        if self.alone is not None:
            of = self.alone.feature_weights
            return None if of is None else of.over(self.catalog, self.embeddings, self.statistics)
        of_release = (self.catalog, self.embeddings, self.statistics)
        return FeatureWeights.load(self.folders["ranker"], *of_release, layout=self.layout)


def bundle_in_memory(
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32],
    behaviour: Behaviour,
    statistics: Statistics,
    *,
    settings: RetrievalSettings,
    ranker: CrossEncoder | None = None,
    second: CrossEncoder | None = None,
    ranking: RankerSettings | None = None,
    layout: Layout | None = None,
    engine: RetrievalEngine | None = None,
) -> ReleaseBundle:
    """Return a bundle of parts that were just fitted and never written: what evaluation serves from.

    An `engine` over the same parts is taken where there is one already; `second` stands behind `ranker` in a cascade.
    """
    from models.index import FlatIndex
    from models.retrieval.engine import RetrievalEngine

    bundle = ReleaseBundle(Release({}), {}, catalog, embeddings, settings, layout=layout, ranking=ranking)
    if engine is None:
        parts = (FlatIndex(embeddings), behaviour, statistics, settings)
        engine = RetrievalEngine(catalog, embeddings, *parts, layout=layout)
    # A cached property reads the instance's dictionary first, so this is where the parts belong.
    bundle.__dict__.update(behaviour=behaviour, statistics=statistics, engine=engine, ranker=ranker or RetrievalOrder())
    if second is not None:
        vars(bundle)["second"] = behind = SecondRanker(bundle)
        vars(behind)["ranker"] = second
    return bundle


def load_bundle(
    store: ArtifactStore,
    release: Release,
    *,
    settings: RetrievalSettings,
    encoder: str | None = None,
    encoders: EncoderShelf | None = None,
    ranking: RankerSettings | None = None,
    spread: Spread | None = None,
) -> ReleaseBundle:
    """Pull, verify and map every artifact of `release`. Raises ArtifactError naming the artifact and file.

    `encoder` is the URI of what made vectors that do not say it (None: the release's), `encoders` is where encoders
    come from. `ranking` says how this machine computes rankers, `spread` how its index is spread over processes.
    """
    from models.items.folded import withheld_rows
    from models.items.live import LiveItems

    artifacts: dict[str, Artifact] = {kind: store.get(ref) for kind, ref in release.artifacts.items()}
    catalog = ItemCatalog(artifacts["catalog"].path)
    vectors = artifacts["embeddings"]
    embeddings = open_vectors(vectors.path / EMBEDDINGS_FILE)
    if embeddings.ndim != 2 or len(embeddings) != len(catalog):
        raise ArtifactError(f"{vectors.ref}: {embeddings.shape} for {len(catalog)} items")
    try:
        layout = Layout.from_json(vectors.meta.get("layout"))
    except ValueError as error:
        raise ArtifactError(f"{vectors.ref}: {error}") from error
    if layout is not None and layout.dimension != embeddings.shape[1]:
        raise ArtifactError(f"{vectors.ref}: {embeddings.shape[1]} dimensions, its layout has {layout.dimension}")
    folders = {kind: artifact.path for kind, artifact in artifacts.items()}
    bundle = ReleaseBundle(
        release, folders, catalog, embeddings, settings, layout=layout, ranking=ranking, node=store.node, spread=spread
    )
    bundle = replace(bundle, space=TextSpace.of(vectors.meta, bundle.text_dimension, untagged=encoder, shelf=encoders))
    try:
        withheld = withheld_rows(artifacts["catalog"].path, catalog)
    except ValueError as error:
        raise ArtifactError(f"{artifacts['catalog'].ref}: {error}") from error
    return bundle.with_items(LiveItems(release.item_log_seq, withheld)) if withheld else bundle


def _ranks(counts: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    ranks = np.empty(len(counts), np.int64)
    ranks[np.argsort(-np.asarray(counts), kind="stable")] = np.arange(len(counts))
    return ranks
