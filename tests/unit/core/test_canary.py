"""The canary refuses what must not be served, by name."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest

from models.artifacts import ArtifactError, ArtifactStore
from models.bundle import ReleaseBundle
from models.encoder import HashEncoder
from models.index import write_faiss
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.canary import CanaryFailed, CanarySettings, check_release
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings


class Made:
    def __init__(self, folder, dataset: Dataset) -> None:
        self.folder, self.dataset = folder, dataset
        self.artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
        self.release = self.build(dataset)

    def build(self, dataset: Dataset, *, encoder: str = "hash") -> Release:
        return (
            Builder(
                self.artifacts,
                settings=PipelinesSettings(train_ranker=False),
                retrieval=RetrievalSettings(),
                encoder=lambda: HashEncoder(32),
                encoder_uri=encoder,
            )
            .run(dataset)
            .release
        )

    def check(self, release: Release | None = None, before: Release | None = None, **changed) -> dict:
        known = {"retrieval": RetrievalSettings(), "encoder": "hash", "dimension": 32, "settings": CanarySettings()}
        return check_release(self.artifacts, release or self.release, before, **{**known, **changed})

    def with_vectors(self, vectors) -> Release:
        """Return the release with other vectors, and an index over those."""
        folder = self.folder / "made"
        folder.mkdir()
        np.save(folder / "embeddings.npy", vectors.astype(np.float32), allow_pickle=False)
        meta = self.artifacts.meta(self.release.artifacts["embeddings"])
        return self._with("embeddings", self.artifacts.put("embeddings", folder, meta))

    def with_index_over(self, vectors) -> Release:
        folder = self.folder / "index"
        folder.mkdir()
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors.astype(np.float32))
        write_faiss(index, folder)
        return self._with("index", self.artifacts.put("index", folder, {}))

    def _with(self, kind: str, ref: str) -> Release:
        return replace(self.release, artifacts={**self.release.artifacts, kind: ref})

    @property
    def vectors(self):
        return np.load(self.artifacts.get(self.release.artifacts["embeddings"]).path / "embeddings.npy")


@pytest.fixture
def made(tmp_path, items_of, log_of) -> Made:
    return Made(tmp_path, Dataset("tiny", items_of(40), log_of()))


def test_a_good_release_passes_with_its_figures(made) -> None:
    assert made.check(before=made.release) == {"items": 40, "queries": 40, "recall": 1.0, "overlap": 1.0}


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not numbers"), (3.0, "unit length")])
def test_vectors_that_are_no_unit_vectors_are_refused(made, value, said) -> None:
    vectors = made.vectors
    vectors[7, 0] = value
    bad = made.with_vectors(vectors)
    with pytest.raises(CanaryFailed, match=f"{bad.artifacts['embeddings']}: .*{said}"):
        made.check(bad)


def test_wrong_dimensions_and_another_encoder_are_refused(made) -> None:
    with pytest.raises(CanaryFailed, match="32 dimensions, models"):
        made.check(dimension=64)
    with pytest.raises(CanaryFailed, match="made by the encoder hash, not by other"):
        made.check(encoder="other")


def test_too_few_vectors_are_refused(made) -> None:
    with pytest.raises(ArtifactError, match="for 40 items"):
        made.check(made.with_vectors(made.vectors[:-1]))


def test_an_index_over_other_vectors_is_refused_by_its_recall(made) -> None:
    bad = made.with_index_over(np.roll(made.vectors, 1, axis=0) * 0.1)
    with pytest.raises(CanaryFailed, match=r"index/.*: recall 0\.\d+ against an exact search"):
        made.check(bad)


def test_an_index_of_another_size_is_refused(made) -> None:
    with pytest.raises(CanaryFailed, match=r"index\.faiss"):
        made.check(made.with_index_over(made.vectors[:-1]))


def test_lists_that_have_nothing_to_do_with_those_before_are_refused_unless_the_encoder_changed(made) -> None:
    shuffled = [
        replace(item, title=f"{n * 7919} {n}", text=f"{n * 104729} {n * 31}", labels={}, numbers={})
        for n, item in enumerate(made.dataset.items)
    ]
    other = made.build(replace(made.dataset, items=shuffled))
    with pytest.raises(CanaryFailed, match="share"):
        made.check(other, made.release, settings=CanarySettings(min_overlap=0.95))
    again = made.build(made.dataset, encoder="hash-2")
    assert made.check(again, made.release, encoder="hash-2")["overlap"] is None


def test_a_catalog_that_shrank_by_more_than_half_is_taken_for_a_mistake(made) -> None:
    small = made.build(replace(made.dataset, items=made.dataset.items[:10]))
    with pytest.raises(CanaryFailed, match="10 items, 40 before"):
        made.check(small, made.release)
    assert made.check(small, made.release, settings=CanarySettings(min_items_share=0.1, min_overlap=0.0))["items"] == 10


def test_a_release_before_that_is_damaged_is_nothing_to_compare_with(made) -> None:
    lost = replace(made.release, artifacts={**made.release.artifacts, "index": "index/" + "0" * 64})
    assert made.check(before=lost)["before"] == "cannot be loaded"


def test_the_ranker_is_asked_unless_those_who_load_the_release_do(made, monkeypatch) -> None:
    class Broken:
        def score(self, query, candidates):
            return np.full(len(candidates), np.nan, np.float32)

    monkeypatch.setattr(ReleaseBundle, "ranker", Broken())
    with pytest.raises(CanaryFailed, match="not numbers"):
        made.check()
    assert made.check(ask_ranker=False)["recall"] == 1.0
