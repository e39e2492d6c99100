"""The canary: what a release must show before any replica is asked to load it.

Golden queries are vectors of items, chosen by a seed: the index must find what an exact search finds, the lists must be
those of the release before as far as both know the items, and nothing may be missing, misshapen or not a number. Called
by the commands that publish.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from models.artifacts import ArtifactError, ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.index import FlatIndex, load_faiss
from models.releases import Release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings

_CHECKED_ROWS = 8192
_NEAREST = 10


class CanaryFailed(Exception):
    """A release must not be published; the message says what is wrong with it."""


class CanarySettings(BaseModel):
    """What a release must reach: `pipelines.canary` in the settings tree."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    queries: int = Field(64, ge=1)
    """Golden queries."""
    min_recall: float = Field(0.9, ge=0, le=1)
    """Share of the ten nearest items that the index must find, as a mean over the golden queries."""
    min_overlap: float = Field(0.5, ge=0, le=1)
    """Share of each list that must be that of the release before, on average; only while the encoder is the same."""
    min_items_share: float = Field(0.5, ge=0, le=1)
    """A catalog smaller than this share of the one before is taken for a mistake."""


def check_release(
    artifacts: ArtifactStore,
    release: Release,
    before: Release | None,
    *,
    retrieval: RetrievalSettings,
    encoder: str,
    dimension: int,
    settings: CanarySettings,
    ask_ranker: bool = True,
) -> dict[str, Any]:
    """Return the canary's figures. Raises CanaryFailed or ArtifactError, naming the artifact and what is wrong.

    `encoder` and `dimension` are what its vectors were to be made by. `ask_ranker` False leaves the ranker to those who
    load the release next and ask it themselves.
    """
    bundle = load_bundle(artifacts, release, settings=retrieval, encoder=encoder)
    vectors = bundle.embeddings if bundle.alone is None else bundle.alone.embeddings
    ref = release.artifacts["embeddings"]
    if bundle.space.uri not in (None, encoder):
        raise CanaryFailed(f"{ref}: made by the encoder {bundle.space.uri}, not by {encoder}")
    if bundle.text_dimension != dimension:
        raise CanaryFailed(f"{ref}: {bundle.text_dimension} dimensions, models.encoder.dimension = {dimension}")
    _check_vectors(ref, vectors)
    rows = _golden(len(vectors), settings.queries)
    facts: dict[str, Any] = {"items": len(vectors), "queries": len(rows)}
    facts["recall"] = _recall(bundle, release, vectors, rows)
    if facts["recall"] < settings.min_recall:
        raise CanaryFailed(
            f"{release.artifacts['index']}: recall {facts['recall']:.3f} against an exact search, "
            f"pipelines.canary.min_recall = {settings.min_recall}"
        )
    _check_answers(bundle, ask_ranker)
    facts |= _against(artifacts, bundle, before, rows, retrieval=retrieval, settings=settings)
    return facts


def _check_vectors(ref: str, vectors: npt.NDArray[np.float32]) -> None:
    for start in range(0, len(vectors), _CHECKED_ROWS):
        part = np.asarray(vectors[start : start + _CHECKED_ROWS])
        if not np.isfinite(part).all():
            raise CanaryFailed(f"{ref}: holds values that are not numbers")
        if float(np.abs(np.linalg.norm(part, axis=1) - 1.0).max()) > 1e-2:
            raise CanaryFailed(f"{ref}: holds vectors that are not of unit length")


def _golden(items: int, queries: int) -> npt.NDArray[np.int64]:
    return np.sort(np.random.default_rng(0).permutation(items)[:queries])


def _recall(
    bundle: ReleaseBundle, release: Release, vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]
) -> float:
    try:
        index = load_faiss(bundle.folders["index"], vectors)
    except ValueError as error:
        raise CanaryFailed(f"{release.artifacts['index']}: {error}") from error
    exact = FlatIndex(vectors)
    found = []
    for row in rows:
        query = np.asarray(vectors[row])
        scores = exact.search(query, _NEAREST)[1]
        # By score and not by row: equal texts have equal vectors, and either of them is right.
        mine = index.search(query, _NEAREST)[1]
        found.append(float((mine >= scores[-1] - 1e-4).mean()) if len(mine) == len(scores) else 0.0)
    return float(np.mean(found))


def _check_answers(bundle: ReleaseBundle, ask_ranker: bool) -> None:
    """Ask the engine, and perhaps the ranker, as a request would."""
    query = RetrievalQuery(n=min(100, len(bundle.catalog)), now_ms=0)
    candidates = bundle.engine.retrieve(query)
    if not len(candidates):
        raise CanaryFailed(f"{bundle.release_id}: a request without history gets no candidates")
    scores = bundle.ranker.score(query, candidates) if ask_ranker else candidates.scores
    if not np.isfinite(candidates.scores).all() or not np.isfinite(scores).all():
        raise CanaryFailed(f"{bundle.release_id}: candidates have scores that are not numbers")


def _against(
    artifacts: ArtifactStore,
    bundle: ReleaseBundle,
    before: Release | None,
    rows: npt.NDArray[np.int64],
    *,
    retrieval: RetrievalSettings,
    settings: CanarySettings,
) -> dict[str, Any]:
    """Compare with the release before; a damaged one is nothing to compare with."""
    if before is None:
        return {}
    try:
        old = load_bundle(artifacts, before, settings=retrieval)
    except (ArtifactError, OSError, ValueError):
        return {"before": "cannot be loaded"}
    if len(bundle.catalog) < settings.min_items_share * len(old.catalog):
        raise CanaryFailed(
            f"{bundle.release.artifacts['catalog']}: {len(bundle.catalog)} items, {len(old.catalog)} before; "
            f"pipelines.canary.min_items_share = {settings.min_items_share}"
        )
    same = _space(artifacts, bundle.release) == _space(artifacts, before)
    if not same or old.embeddings.shape[1] != bundle.embeddings.shape[1]:
        return {"overlap": None}  # another encoder: other neighbours are what it is for
    overlap = _overlap(bundle, old, rows)
    if overlap is not None and overlap < settings.min_overlap:
        raise CanaryFailed(
            f"{bundle.release_id}: golden queries share {overlap:.2f} of their items with {old.release_id}, "
            f"pipelines.canary.min_overlap = {settings.min_overlap}"
        )
    return {"overlap": overlap}


def _overlap(bundle: ReleaseBundle, old: ReleaseBundle, rows: npt.NDArray[np.int64]) -> float | None:
    shares = []
    for name in bundle.catalog.item_ids(rows.astype(np.int32)):
        mine, theirs = bundle.catalog.row(name), old.catalog.row(name)
        if mine is None or theirs is None:
            continue
        lists = [
            set(b.catalog.item_ids(b.engine.index.search(np.asarray(b.embeddings[row]), _NEAREST)[0]))
            for b, row in ((bundle, mine), (old, theirs))
        ]
        shares.append(len(lists[0] & lists[1]) / max(1, len(lists[1])))
    return float(np.mean(shares)) if shares else None


def _space(artifacts: ArtifactStore, release: Release) -> Any:
    return artifacts.meta(release.artifacts["embeddings"]).get("space")
