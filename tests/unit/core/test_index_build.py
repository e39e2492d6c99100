"""Indexes are built by the size of the catalog and by measured recall, the same way every time."""

import numpy as np
import pytest

from models.index import FaissIndex, FlatIndex, write_faiss
from models.index_build import FLAT_UP_TO, IVF_FLAT_UP_TO, build_faiss, held_out_queries, kind_for


def clustered(count: int, dimension: int = 16, seed: int = 0):
    """Vectors in groups, as texts about the same things are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(60, dimension))
    vectors = centres[rng.integers(0, 60, count)] + 0.5 * rng.normal(size=(count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return clustered(8_000)


@pytest.mark.parametrize(
    ("count", "dimension", "gpu", "kind"),
    [
        (0, 384, False, "flat"),
        (FLAT_UP_TO, 384, False, "flat"),
        (FLAT_UP_TO + 1, 384, False, "ivf_flat"),
        (IVF_FLAT_UP_TO, 384, True, "ivf_flat"),
        (IVF_FLAT_UP_TO + 1, 384, False, "ivf_pq"),
        (IVF_FLAT_UP_TO + 1, 50, False, "ivf_flat"),  # 4-bit codes of 2 dimensions come in pairs
        (10**7, 384, True, "ivf_flat"),
    ],
)
def test_the_kind_follows_from_size_dimension_and_device(count: int, dimension: int, gpu: bool, kind: str) -> None:
    assert kind_for(count, dimension, gpu=gpu) == kind


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq", "hnsw"])
@pytest.mark.parametrize("recall", [0.8, 0.98])
def test_the_recorded_recall_is_reached_on_queries_that_nobody_chose_by(vectors, kind: str, recall: float) -> None:
    built = build_faiss(vectors, kind=kind, recall=recall)
    assert built.facts["recall"] >= recall == built.facts["recall_wanted"]
    queries = held_out_queries(vectors, count=200, seed=77)
    index, exact = FaissIndex(built.index, vectors), FlatIndex(vectors)
    shares = [len(np.intersect1d(index.search(q, 100)[0], exact.search(q, 100)[0])) / 100 for q in queries]
    assert np.mean(shares) > recall - 0.02


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_more_recall_costs_more_reading(vectors, kind: str) -> None:
    little, much = (build_faiss(vectors, kind=kind, recall=r).facts for r in (0.6, 0.99))
    assert little["nprobe"] <= much["nprobe"] and little != much
    assert set(much) >= {"kind", "factory", "nprobe", "recall", "recall_wanted", "recall_at", "queries"}


def test_a_recall_out_of_reach_is_recorded_as_what_was_reached(vectors) -> None:
    facts = build_faiss(vectors, kind="hnsw", recall=1.01).facts
    assert 0.9 < facts["recall"] <= 1.0 < facts["recall_wanted"]


@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_pq"])
def test_the_same_vectors_give_the_same_index_and_the_same_record(tmp_path, vectors, kind: str) -> None:
    facts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        built = build_faiss(vectors, kind=kind)
        write_faiss(built.index, tmp_path / name)
        facts.append(built.facts)
    assert facts[0] == facts[1]
    assert (tmp_path / "a" / "index.faiss").read_bytes() == (tmp_path / "b" / "index.faiss").read_bytes()


@pytest.mark.parametrize("kind", ["ivf_flat", "ivf_pq"])
def test_a_catalog_of_one_text_repeated_is_indexed_too(kind: str) -> None:
    same = np.repeat(clustered(1), 3_000, axis=0)
    built = build_faiss(same, kind=kind)
    assert built.facts["recall"] == 1.0  # rows that tie are as good as each other
    assert len(FaissIndex(built.index, same).search(same[0], 50)[0]) == 50
