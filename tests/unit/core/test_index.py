"""Nearest items: exact where it must be, and never an item that the filter forbids."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from models.index import GPU_MOST, FaissIndex, FlatIndex, build_faiss, load_faiss, to_best_device, write_faiss


def unit(count: int, dimension: int = 16, seed: int = 0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def flat(vectors):
    return FaissIndex(build_faiss(vectors), vectors)


@pytest.fixture(scope="module")
def large():
    """Enough rows for an IVF index."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = unit(20_001, 8)
    index = build_faiss(vectors)
    assert "IVF" in type(index).__name__
    return FaissIndex(index, vectors), FlatIndex(vectors), vectors


def test_a_small_catalog_gets_a_flat_index_that_agrees_with_numpy() -> None:
    vectors = unit(500)
    for query in unit(20, seed=1):
        rows, scores = flat(vectors).search(query, 10)
        wanted, wanted_scores = FlatIndex(vectors).search(query, 10)
        assert rows.tolist() == wanted.tolist() and np.allclose(scores, wanted_scores, atol=1e-5)
        assert rows.dtype == np.int32 and scores.dtype == np.float32


def test_a_large_catalog_gets_an_ivf_index_with_good_recall(large) -> None:
    index, exact, _ = large
    queries = unit(50, 8, seed=2)
    hits = [len(np.intersect1d(index.search(q, 20)[0], exact.search(q, 20)[0])) / 20 for q in queries]
    assert np.mean(hits) > 0.9


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.04, 0.05, 0.06, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_no_returned_row_violates_the_filter_and_rare_filters_are_answered_in_full(large, kind, share) -> None:
    if kind == "ivf":
        index, exact, vectors = large
    else:
        vectors = unit(3000, 8)
        index, exact = flat(vectors), FlatIndex(vectors)
    allowed = np.random.default_rng(3).random(len(vectors)) < share
    for query in unit(10, 8, seed=4):
        rows, scores = index.search(query, 50, allowed=allowed)
        assert allowed[rows].all() and len(set(rows.tolist())) == len(rows)
        assert len(rows) == min(50, int(allowed.sum()))
        assert (np.diff(scores) <= 0).all()
        if share < 0.05 or kind == "flat":
            assert rows.tolist() == exact.search(query, 50, allowed=allowed)[0].tolist()


def test_a_filter_that_keeps_what_is_far_away_is_answered_too(large) -> None:
    index, exact, vectors = large
    query = vectors[0]
    allowed = vectors @ query < 0  # half of all, and none of the nearest
    rows, _ = index.search(query, 30, allowed=allowed)
    assert len(rows) == 30 and allowed[rows].all()
    assert rows.tolist() == exact.search(query, 30, allowed=allowed)[0].tolist()


def test_equal_scores_are_ordered_by_row() -> None:
    vectors = np.repeat(np.eye(1, 16, dtype=np.float32), 50, axis=0)
    for index in (flat(vectors), FlatIndex(vectors)):
        assert index.search(vectors[0], 50)[0].tolist() == list(range(50))


@pytest.mark.parametrize("n", [0, 1, 5, 6, 1000])
def test_asking_for_nothing_or_too_much_is_harmless(n: int) -> None:
    vectors = unit(5)
    for allowed in (None, np.ones(5, bool)):
        assert len(flat(vectors).search(vectors[0], n, allowed=allowed)[0]) == min(n, 5)
    empty = np.empty((0, 16), np.float32)
    assert len(flat(empty).search(vectors[0], n)[0]) == 0


def test_a_written_index_is_loaded_and_one_that_does_not_fit_is_refused(tmp_path) -> None:
    vectors = unit(50)
    write_faiss(build_faiss(vectors), tmp_path)
    assert load_faiss(tmp_path, vectors).search(vectors[7], 1)[0].tolist() == [7]
    for wrong in (vectors[:49], unit(50, 8)):
        with pytest.raises(ValueError, match="does not fit"):
            load_faiss(tmp_path, wrong)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_file_that_is_no_index_is_a_value_error(tmp_path, content: bytes) -> None:
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read"):
        load_faiss(tmp_path, unit(5))


def test_the_same_vectors_give_the_same_index(tmp_path) -> None:
    vectors = unit(2000, 8)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_faiss(build_faiss(vectors), tmp_path / name)
    assert (tmp_path / "a" / "index.faiss").read_bytes() == (tmp_path / "b" / "index.faiss").read_bytes()


class GpuIndex:
    """FAISS on a GPU as far as its limits go: at most 2,048 rows an answer, one search at a time."""

    def __init__(self, index) -> None:
        self._index = index
        self._busy = threading.Lock()
        self.asked: list[int] = []

    def search(self, queries, k):
        assert 0 < k <= 2048, "a GPU index takes k up to 2048"
        assert self._busy.acquire(blocking=False), "a GPU index has one search thread"
        try:
            self.asked.append(k)
            return self._index.search(queries, k)
        finally:
            self._busy.release()


def faiss_with(gpus: int):
    moved = []

    def to_gpu(resources, device, index):
        assert resources == "resources" and device == 0
        moved.append(index)
        return GpuIndex(index)

    return SimpleNamespace(
        get_num_gpus=lambda: gpus, StandardGpuResources=lambda: "resources", index_cpu_to_gpu=to_gpu
    ), moved


def test_an_index_moves_to_the_gpu_only_where_build_and_machine_have_one() -> None:
    index = build_faiss(unit(10))
    with_gpu, moved = faiss_with(1)
    assert isinstance(to_best_device(index, with_gpu), GpuIndex) and moved == [index]
    without, moved = faiss_with(0)
    assert to_best_device(index, without) is index and moved == []
    assert to_best_device(index, SimpleNamespace()) is index
    assert to_best_device(index, SimpleNamespace(get_num_gpus=lambda: 1)) is index


def test_a_gpu_index_is_never_asked_for_more_than_it_answers() -> None:
    vectors = unit(5000, 8)
    gpu = GpuIndex(build_faiss(vectors))
    index, exact = FaissIndex(gpu, vectors, on_gpu=True), FlatIndex(vectors)
    allowed = np.random.default_rng(5).random(5000) < 0.06
    for n, mask in ((10, None), (200, allowed), (3000, None), (GPU_MOST, None), (100, np.ones(5000, bool))):
        rows, _ = index.search(vectors[0], n, allowed=mask)
        assert rows.tolist() == exact.search(vectors[0], n, allowed=mask)[0].tolist()
    assert gpu.asked == [10, GPU_MOST, 166]


def test_a_gpu_index_is_searched_by_one_thread_at_a_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    vectors = unit(2000, 8)
    index = FaissIndex(GpuIndex(build_faiss(vectors)), vectors, on_gpu=True)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: index.search(vectors[r], 1)[0].tolist(), range(400)))
    assert found == [[r] for r in range(400)]
