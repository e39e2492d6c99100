"""Nearest items: exact where it must be, and never an item that the filter forbids."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from models.index import GPU_MOST, FaissIndex, FlatIndex, load_faiss, to_best_device, write_faiss
from models.index_build import build_faiss


def unit(count: int, dimension: int = 16, seed: int = 0):
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def flat(vectors):
    return FaissIndex(build_faiss(vectors).index, vectors)


KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")


@pytest.fixture(scope="module")
def vectors():
    return unit(6_000, 16)


@pytest.fixture(scope="module")
def exact(vectors):
    return FlatIndex(vectors)


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors):
    """Every kind there is, over the same vectors."""
    import faiss

    faiss.omp_set_num_threads(1)
    built = build_faiss(vectors, kind=request.param)
    assert built.facts["kind"] == request.param
    return FaissIndex(built.index, vectors)


def test_a_small_catalog_gets_a_flat_index_that_agrees_with_numpy() -> None:
    vectors = unit(500)
    for query in unit(20, seed=1):
        rows, scores = flat(vectors).search(query, 10)
        wanted, wanted_scores = FlatIndex(vectors).search(query, 10)
        assert rows.tolist() == wanted.tolist() and np.allclose(scores, wanted_scores, atol=1e-5)
        assert rows.dtype == np.int32 and scores.dtype == np.float32


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.01, 0.04, 0.05, 0.06, 0.3, 0.9, 1.0])
def test_no_returned_row_violates_the_filter_and_rare_filters_are_answered_in_full(
    index, exact, vectors, share
) -> None:
    allowed = np.random.default_rng(3).random(len(vectors)) < share
    for query in unit(10, 16, seed=4):
        rows, scores = index.search(query, 50, allowed=allowed)
        assert allowed[rows].all() and len(set(rows.tolist())) == len(rows)
        assert len(rows) == min(50, int(allowed.sum()))
        assert (np.diff(scores) <= 0).all()
        if share < 0.05:
            assert rows.tolist() == exact.search(query, 50, allowed=allowed)[0].tolist()


@pytest.mark.parametrize("forbidden", [1, 30, 200])
def test_a_list_is_filled_where_what_is_nearest_is_forbidden(index, exact, vectors, forbidden) -> None:
    for query in unit(10, 16, seed=5):
        allowed = np.ones(len(vectors), bool)
        allowed[exact.search(query, forbidden)[0]] = False
        rows, _ = index.search(query, 50, allowed=allowed)
        assert len(rows) == 50 and allowed[rows].all()


def test_a_filter_that_keeps_what_is_far_away_is_answered_too(index, exact, vectors) -> None:
    query = vectors[0]
    allowed = vectors @ query < 0  # half of all, and none of the nearest
    rows, _ = index.search(query, 30, allowed=allowed)
    assert len(rows) == 30 and allowed[rows].all()
    assert rows.tolist() == exact.search(query, 30, allowed=allowed)[0].tolist()


def test_every_row_can_be_asked_for(index, vectors) -> None:
    assert sorted(index.search(vectors[0], len(vectors))[0].tolist()) == list(range(len(vectors)))


def test_exact_search_over_more_rows_than_one_block_is_exact() -> None:
    many = unit(40_000, 4)
    allowed = np.random.default_rng(0).random(len(many)) < 0.5
    query = unit(1, 4, seed=9)[0]
    scores = np.where(allowed, many @ query, -np.inf)
    found, best = FlatIndex(many).search(query, 20, allowed=allowed)
    assert np.allclose(best, np.sort(scores)[::-1][:20], atol=1e-6) and allowed[found].all()


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
    write_faiss(build_faiss(vectors).index, tmp_path)
    assert load_faiss(tmp_path, vectors).search(vectors[7], 1)[0].tolist() == [7]
    for wrong in (vectors[:49], unit(50, 8)):
        with pytest.raises(ValueError, match="does not fit"):
            load_faiss(tmp_path, wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_index_answers_as_the_one_that_was_written(tmp_path, vectors, kind) -> None:
    built = build_faiss(vectors, kind=kind)
    write_faiss(built.index, tmp_path)
    loaded, made = load_faiss(tmp_path, vectors), FaissIndex(built.index, vectors)
    for query in unit(20, 16, seed=6):  # the search parameters are part of the file
        assert loaded.search(query, 20)[0].tolist() == made.search(query, 20)[0].tolist()


@pytest.mark.parametrize("content", [b"", b"garbage" * 100])
def test_a_file_that_is_no_index_is_a_value_error(tmp_path, content: bytes) -> None:
    (tmp_path / "index.faiss").write_bytes(content)
    with pytest.raises(ValueError, match="cannot read"):
        load_faiss(tmp_path, unit(5))


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
        assert resources == "resources" and 0 <= device < gpus
        moved.append(index if device == 0 else (device, index))
        return GpuIndex(index)

    return SimpleNamespace(
        get_num_gpus=lambda: gpus, StandardGpuResources=lambda: "resources", index_cpu_to_gpu=to_gpu
    ), moved


def test_an_index_moves_to_the_gpu_only_where_build_and_machine_have_one() -> None:
    index = build_faiss(unit(10)).index
    with_gpu, moved = faiss_with(1)
    assert isinstance(to_best_device(index, with_gpu), GpuIndex) and moved == [index]
    two, moved = faiss_with(2)
    assert isinstance(to_best_device(index, two, device=1), GpuIndex) and moved == [(1, index)]
    without, moved = faiss_with(0)
    assert to_best_device(index, without) is index and moved == []
    assert to_best_device(index, SimpleNamespace()) is index
    assert to_best_device(index, SimpleNamespace(get_num_gpus=lambda: 1)) is index


@pytest.mark.parametrize("kind", ["ivf_pq", "hnsw"])
def test_a_kind_that_gpus_do_not_know_stays_on_the_cpu(vectors, kind) -> None:
    index = build_faiss(vectors, kind=kind).index
    with_gpu, moved = faiss_with(1)
    assert to_best_device(index, with_gpu) is index and moved == []


def test_a_gpu_index_is_never_asked_for_more_than_it_answers() -> None:
    vectors = unit(5000, 8)
    gpu = GpuIndex(build_faiss(vectors).index)
    index, exact = FaissIndex(gpu, vectors, on_gpu=True), FlatIndex(vectors)
    allowed = np.random.default_rng(5).random(5000) < 0.06
    for n, mask in ((10, None), (200, allowed), (3000, None), (GPU_MOST, None), (100, np.ones(5000, bool))):
        rows, _ = index.search(vectors[0], n, allowed=mask)
        assert rows.tolist() == exact.search(vectors[0], n, allowed=mask)[0].tolist()
    assert gpu.asked == [10, GPU_MOST, 100]


def test_a_gpu_index_is_searched_by_one_thread_at_a_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    vectors = unit(2000, 8)
    index = FaissIndex(GpuIndex(build_faiss(vectors).index), vectors, on_gpu=True)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda r: index.search(vectors[r], 1)[0].tolist(), range(400)))
    assert found == [[r] for r in range(400)]
