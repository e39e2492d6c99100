"""An index in pieces answers as one in one piece, keeps filters, and is built within a bound on memory."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import EMBEDDINGS_FILE
from models.index import FaissIndex, FlatIndex, load_faiss, write_faiss
from models.index_build import build_faiss, held_out_queries
from models.shards import SHARDS_FILE, Shard, ShardedIndex, load_shards, plan, read_shards, write_shards
from pipelines.index_shards import InlinePieces, Pieces, PieceWork, build_index, build_piece, forget_pieces

KINDS = ("flat", "ivf_flat", "ivf_pq", "hnsw")
BOUNDS = (0, 1500, 3100, 3200, 6000)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 16))
    made = centres[rng.integers(0, 60, 6000)] + 0.5 * rng.normal(size=(6000, 16))
    made[3000:3200] = made[1400:1600]  # equal scores on both sides of a border
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module", params=KINDS)
def pair(request, vectors):
    """One index of a kind, and the same rows in four pieces of that kind."""
    import faiss

    faiss.omp_set_num_threads(1)
    one = FaissIndex(build_faiss(vectors, kind=request.param).index, vectors)
    shards = []
    for start, stop in itertools.pairwise(BOUNDS):
        part = np.ascontiguousarray(vectors[start:stop])
        shards.append((start, stop, FaissIndex(build_faiss(part, kind=request.param).index, part)))
    return request.param, one, shards


@pytest.fixture(scope="module")
def queries(vectors) -> np.ndarray:
    return held_out_queries(vectors, count=40)


def masks(count: int):
    rng = np.random.default_rng(3)
    border = np.zeros(count, bool)
    border[1495:1505] = True
    return [None, np.ones(count, bool), *(rng.random(count) < share for share in (0.0005, 0.04, 0.3, 0.9)), border]


def same(found, wanted) -> bool:
    """Whether two answers are alike; of rows whose scores tie with the last one, any may be there."""
    (rows, scores), (other_rows, other_scores) = found, wanted
    if len(rows) != len(other_rows) or not np.allclose(scores, other_scores, atol=1e-6):
        return False
    clear = scores > scores[-1] + 1e-6 if len(scores) else np.zeros(0, bool)
    return set(rows[clear].tolist()) == set(other_rows[clear].tolist())


@pytest.mark.parametrize("threads", [1, 3])
def test_shards_answer_as_one_index_with_and_without_filters(pair, vectors, queries, threads: int) -> None:
    kind, one, shards = pair
    sharded, exact = ShardedIndex(shards, exact=FlatIndex(vectors), threads=threads), FlatIndex(vectors)
    for allowed in masks(len(vectors)):
        usable = len(vectors) if allowed is None else int(allowed.sum())
        found = alone = wanted = 0
        for query in queries:
            rows, scores = sharded.search(query, 50, allowed=allowed)
            assert rows.dtype == np.int32 and len(rows) == len(set(rows.tolist())) == min(50, usable)
            assert allowed is None or allowed[rows].all()
            assert np.lexsort((rows, -scores)).tolist() == list(range(len(rows)))
            one_rows, one_scores = one.search(query, 50, allowed=allowed)
            best = exact.search(query, 50, allowed=allowed)[1]
            if kind == "flat" or usable < 0.05 * len(vectors):
                assert same((rows, scores), (one_rows, one_scores))
            if len(best):
                bound = best[-1] - 1e-5
                found += int((vectors[rows] @ query >= bound).sum())
                alone += int((vectors[one_rows] @ query >= bound).sum())
                wanted += len(best)
        assert not wanted or found / wanted >= min(0.97, alone / wanted - 0.01)


def test_several_callers_at_once_get_their_own_answers(pair, vectors) -> None:
    _, _, shards = pair
    sharded = ShardedIndex(shards, exact=FlatIndex(vectors), threads=2)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda row: sharded.search(vectors[row], 5)[0].tolist(), range(0, 1400, 7)))
    alone = ShardedIndex(shards, exact=FlatIndex(vectors))
    assert found == [alone.search(vectors[row], 5)[0].tolist() for row in range(0, 1400, 7)]


@pytest.mark.parametrize("n", [0, 1, 6000, 10_000])
def test_asking_for_nothing_or_everything_is_harmless(pair, vectors, n: int) -> None:
    _, _, shards = pair
    assert len(ShardedIndex(shards, exact=FlatIndex(vectors)).search(vectors[0], n)[0]) == min(n, 6000)
    assert (
        len(ShardedIndex(shards, exact=FlatIndex(vectors)).search(vectors[0], n, allowed=np.zeros(6000, bool))[0]) == 0
    )


def test_shards_are_spread_over_the_gpus_there_are_and_asked_at_the_same_time(vectors, queries) -> None:
    started, both = [], threading.Barrier(2, timeout=10)

    class OnGpu:
        def __init__(self, part, device):
            self._exact, self.device = FlatIndex(part), device

        def search(self, query, n, *, allowed=None):
            if len(started) < 2:
                started.append(self.device)
                both.wait()  # breaks when the other device is asked only after this one
            return self._exact.search(query, n, allowed=allowed)

    placed = []

    def load(shard, part, device):
        placed.append(device)
        return OnGpu(part, device)

    shards = [Shard(str(n), start, stop) for n, (start, stop) in enumerate(itertools.pairwise(BOUNDS))]
    index = load_shards(shards, vectors, load, exact=FlatIndex(vectors), devices=2)
    assert placed == [0, 1, 0, 1]
    for query in queries:
        assert same(index.search(query, 20), FlatIndex(vectors).search(query, 20))
    assert sorted(started) == [0, 1]


def test_shards_that_leave_rows_out_are_refused(vectors) -> None:
    some = FlatIndex(vectors[:10])
    for wrong in ([], [(1, 10, some)], [(0, 10, some), (11, 21, some)]):
        with pytest.raises(ValueError, match="cover"):
            ShardedIndex(wrong, exact=FlatIndex(vectors))


@pytest.mark.parametrize(("rows", "memory"), [(0, 1 << 20), (10, 1 << 20), (100_000, 64 << 20), (1_000_000, 1 << 30)])
def test_a_plan_covers_all_rows_within_the_memory(rows: int, memory: int) -> None:
    shards = plan(rows, 384, memory_bytes=memory)
    assert shards[0].start == 0 and shards[-1].stop == rows
    assert all(a.stop == b.start for a, b in itertools.pairwise(shards))
    assert max(s.stop - s.start for s in shards) * 384 * 4 * 3 <= max(memory, 1)
    with pytest.raises(ValueError, match="not enough"):
        plan(5000, 384, memory_bytes=1 << 20)


class Place:
    """Embeddings as an artifact."""

    def __init__(self, folder: Path, vectors: np.ndarray) -> None:
        self.artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
        (folder / "made").mkdir()
        np.save(folder / "made" / EMBEDDINGS_FILE, vectors, allow_pickle=False)
        self.embeddings = self.artifacts.get(self.artifacts.put("embeddings", folder / "made", {}))
        self.to = folder / "index"
        self.to.mkdir()

    def build(self, rows_per_piece: int, **options):
        memory = rows_per_piece * 16 * 4 * 3
        return build_index(self.artifacts, self.embeddings, self.to, recall=0.98, memory_bytes=memory, **options)


@pytest.fixture
def place(tmp_path, vectors) -> Place:
    return Place(tmp_path, vectors)


def test_what_fits_is_built_in_one_piece_as_before(place, vectors) -> None:
    facts = place.build(6000)
    assert facts["kind"] == "flat" and facts["items"] == 6000 and facts["dimension"] == 16
    assert [p.name for p in place.to.iterdir()] == ["index.faiss"]
    assert isinstance(load_faiss(place.to, vectors), FaissIndex)


def test_pieces_are_built_loaded_and_searched_as_one(place, vectors, queries) -> None:
    told = []
    facts = place.build(2000, progress=lambda step, done, total: told.append((step, done, total)))
    assert facts["shards"] == 3 and told == [("index", n, 3) for n in range(4)]
    loaded, exact = load_faiss(place.to, vectors), FlatIndex(vectors)
    for query in queries:
        for allowed in masks(len(vectors)):
            assert same(loaded.search(query, 20, allowed=allowed), exact.search(query, 20, allowed=allowed))
    forget_pieces(place.artifacts, place.embeddings, facts, recall=0.98)
    fs, root = place.artifacts.place
    assert fs.ls(f"{root}/index-pieces") == []


class Counting(InlinePieces):
    """Counts pieces and may stop as a killed process would."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.built, self.dies_at = 0, dies_at

    def __call__(self, artifacts, work):
        for key in super().__call__(artifacts, work):
            self.built += 1
            yield key
            if self.built == self.dies_at:
                raise KeyboardInterrupt


def test_after_a_kill_only_the_open_pieces_are_built(place) -> None:
    with pytest.raises(KeyboardInterrupt):
        place.build(2000, runner=Counting(dies_at=2))
    again = Counting()
    place.build(2000, runner=again)
    assert again.built == 1


def test_a_damaged_piece_is_named_taken_away_and_made_anew(place) -> None:
    shards = plan(6000, 16, memory_bytes=2000 * 16 * 4 * 3)
    key = PieceWork(place.embeddings.ref, shards[1], 0.98).key
    build_piece(place.artifacts, PieceWork(place.embeddings.ref, shards[1], 0.98))
    _, root = place.artifacts.place
    Path(f"{root}/index-pieces/{key}.faiss").write_bytes(b"half")
    with pytest.raises(ValueError, match=f"{key}: damaged"):
        place.build(2000)
    assert not Pieces(place.artifacts).holds(key)
    assert place.build(2000)["shards"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "{}",
        '{"shards": []}',
        '{"shards": [{"file": "../x", "start": 0, "stop": 6000}]}',
        '{"shards": [{"file": "a", "start": 0, "stop": 5999}]}',
        '{"shards": [{"file": "a", "start": 1, "stop": 6000}]}',
        '{"shards": [{"file": "a", "start": 0, "stop": 10}, {"file": "b", "start": 11, "stop": 6000}]}',
    ],
)
def test_a_list_of_shards_that_makes_no_sense_is_refused(tmp_path, text: str) -> None:
    (tmp_path / SHARDS_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"shards\.json"):
        read_shards(tmp_path, 6000)


def test_a_missing_or_foreign_piece_is_refused_with_its_name(tmp_path, vectors) -> None:
    write_shards([Shard("a.faiss", 0, 3000), Shard("b.faiss", 3000, 6000)], tmp_path)
    write_faiss(build_faiss(vectors[:3000]).index, tmp_path, name="a.faiss")
    with pytest.raises(ValueError, match=r"b\.faiss: missing"):
        load_faiss(tmp_path, vectors)
    write_faiss(build_faiss(vectors[:2999]).index, tmp_path, name="b.faiss")
    with pytest.raises(ValueError, match=r"b\.faiss: 2999 × 16 does not fit"):
        load_faiss(tmp_path, vectors)


BUILD = """
    import json, sys, threading, time
    from pathlib import Path
    import numpy as np
    from models.artifacts import ArtifactStore
    from models.index_build import build_faiss
    from pipelines.index_shards import build_index

    def anonymous():
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024

    folder, memory = Path(sys.argv[1]), int(sys.argv[2])
    artifacts = ArtifactStore(str(folder / "artifacts"), cache=folder / "cache")
    embeddings = artifacts.get(sys.argv[3])
    build_faiss(np.eye(40, 64, dtype=np.float32), kind="ivf_flat")  # what the libraries take for themselves
    peak, before, stop = [0], anonymous(), threading.Event()

    def watch():
        while not stop.wait(0.002):
            peak[0] = max(peak[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    to = folder / f"index-{memory}"
    to.mkdir()
    facts = build_index(artifacts, embeddings, to, recall=0.9, memory_bytes=memory)
    stop.set()
    watcher.join()
    print(json.dumps({"peak": peak[0], "shards": facts.get("shards", 1)}))
"""


def test_building_takes_no_more_memory_than_the_settings_say(tmp_path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((150_000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (tmp_path / "made").mkdir()
    np.save(tmp_path / "made" / EMBEDDINGS_FILE, vectors, allow_pickle=False)
    artifacts = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    ref = artifacts.put("embeddings", tmp_path / "made", {})
    root = Path(__file__).resolve().parents[3]
    memory = 32 << 20
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BUILD), str(tmp_path), str(memory), ref],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout)
    assert facts["shards"] == 4
    assert facts["peak"] <= memory + (8 << 20), facts
