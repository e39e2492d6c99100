"""Vectors kept as float16: half the bytes, the same meaning, and never mixed with those of the other type."""

from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import SettingsInvalid, load_settings
from cluster.workspace import Workspace
from models.bundle import EMBEDDINGS_FILE, load_bundle
from models.catalog import ItemCatalog
from models.encoder import HashEncoder
from models.index import FlatIndex, load_faiss
from models.items.change import ItemChange
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from models.vectors import HalfVectors, open_vectors
from pipelines.build import Builder
from pipelines.canary import CanarySettings
from pipelines.dataset import Dataset
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import BlockError, BlockFolder, cut
from pipelines.embedding.content import catalog_contents
from pipelines.embedding.runners import EncodeBlocks, InlineRunner, WorkerPlace
from pipelines.index_shards import build_index
from pipelines.settings import PipelinesSettings

CHECKED = {
    "retrieval": RetrievalSettings(),
    "encoder": "hash",
    "dimension": 16,
    "settings": CanarySettings(),
}


@pytest.fixture
def half(spec):
    return replace(spec, dtype="float16")


def test_blocks_hold_fixed_size_lists_of_halves_and_the_artifact_half_the_bytes(job, items, spec, half) -> None:
    catalog = job.catalog(items)
    whole = job.embed(catalog, spec=spec)
    job.embed(catalog, spec=half, forget=False)
    for block in job.blocks():
        assert pq.read_schema(block).field("vector").type == pa.list_(pa.float16(), 16)
    ref = job.embed(catalog, spec=half)
    assert job.artifacts.meta(ref)["dtype"] == "float16" and job.artifacts.meta(whole)["dtype"] == "float32"
    held, full = job.vectors(ref), job.vectors(whole)
    assert held.dtype == np.float16 and full.dtype == np.float32
    assert held.nbytes * 2 == full.nbytes and np.array_equal(held, full.astype(np.float16))


@pytest.mark.parametrize("dimension", [16, 384, 1664])
def test_the_cosine_to_float32_is_one_to_a_millionth(job, items, spec, half, counting, dimension) -> None:
    catalog = job.catalog(items[:500])
    rows = []
    for of in (spec, half):
        ref = job.embed(catalog, spec=of, encoder=counting(dimension))
        found = open_vectors(job.artifacts.get(ref).path / EMBEDDINGS_FILE)
        assert found.dtype == np.float32
        rows.append(np.asarray(found, np.float64))
    lengths = np.linalg.norm(rows[1], axis=1)
    assert np.abs(lengths - 1).max() < 5e-4
    assert ((rows[0] * rows[1]).sum(axis=1) / lengths / np.linalg.norm(rows[0], axis=1)).min() >= 1 - 1e-6


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_resumed_job_gives_the_same_bits(job, items, tmp_path, half, counting, dies_at) -> None:
    catalog = job.catalog(items)
    with pytest.raises(KeyboardInterrupt):
        job.embed(catalog, encoder=counting(dies_at=dies_at), spec=half)
    encoder = counting()
    resumed = job.embed(catalog, encoder=encoder, spec=half)
    assert encoder.calls == 3 - dies_at
    assert resumed == type(job)(tmp_path / "undisturbed").embed(catalog, spec=half)


def test_what_is_taken_over_has_the_same_bits(job, items, changed, half, counting) -> None:
    first = job.embed(job.catalog(items), spec=half)
    later = job.catalog(changed(items, 100))
    encoder = counting()
    second = job.embed(later, encoder=encoder, previous=first, spec=half)
    assert encoder.texts == 30
    assert np.array_equal(job.vectors(second), job.vectors(job.embed(later, spec=half, full=True)))


def test_vectors_of_the_other_type_are_embedded_again(job, items, spec, half, counting) -> None:
    catalog = job.catalog(items)
    for before, wanted in ((spec, half), (half, spec)):
        first = job.embed(catalog, spec=before)
        encoder = counting()
        second = job.embed(catalog, spec=wanted, previous=first, encoder=encoder)
        assert encoder.texts == len(items)
        assert job.vectors(second).dtype == np.dtype(wanted.dtype)


def test_vectors_from_before_there_was_a_choice_count_as_float32(job, items, spec, half, counting) -> None:
    catalog = job.catalog(items)
    made = job.artifacts.get(job.embed(catalog, spec=spec))
    old = job.artifacts.put("embeddings", made.path, {k: v for k, v in made.meta.items() if k != "dtype"})
    for wanted, computed in ((spec, 0), (half, len(items))):
        encoder = counting()
        job.embed(catalog, spec=wanted, previous=old, encoder=encoder)
        assert encoder.texts == computed


def test_a_block_of_the_other_type_is_refused_and_computed_again(job, items, spec, half, counting) -> None:
    catalog = job.catalog(items[:1000])
    held = ItemCatalog(catalog.path)
    contents = catalog_contents(held, ())
    rows = np.arange(1000, dtype=np.int32)
    (whole,), (wanted,) = (cut(contents, held.hashes, rows, of) for of in (spec, half))
    assert whole.key != wanted.key
    folder = BlockFolder(job.artifacts)
    folder.write(replace(whole, key=wanted.key), HashEncoder(16).encode(held.documents(rows)))
    with pytest.raises(BlockError, match="holds float32, float16 is wanted"):
        folder.read(wanted)
    encoder = counting()
    job.embed(catalog, spec=half, encoder=encoder)
    assert encoder.calls == 1


def test_the_identity_of_the_artifact_tells_the_type_and_that_of_float32_is_what_it_was(job, spec, half) -> None:
    whole, halves = (
        Embedder(job.artifacts, of, InlineRunner(lambda: HashEncoder(16))).inputs("catalog/x") for of in (spec, half)
    )
    assert halves == {**whole, "dtype": "float16"} and "dtype" not in whole
    assert spec.space == half.space  # a ranker of one reads the other


def test_halves_read_like_the_array_they_stand_for() -> None:
    rng = np.random.default_rng(0)
    halves = rng.standard_normal((5000, 8)).astype(np.float16)
    stands, query = halves.astype(np.float32), rng.standard_normal(8).astype(np.float32)
    held = HalfVectors(halves)
    assert (len(held), held.shape, held.dtype, held.ndim) == (5000, (5000, 8), np.float32, 2)
    keys = [
        3,
        np.array([4, 0, 4]),
        [1, 2],
        slice(10, 4000, 7),
        (slice(None), slice(0, 3)),
        np.int64(7),
        stands[:, 0] > 0,
    ]
    for key in keys:
        found = np.asarray(held[key])
        assert found.dtype == np.float32 and np.array_equal(found, stands[key])
    assert isinstance(held[2:9], HalfVectors)
    assert np.allclose(held @ query, stands @ query, atol=1e-5) and (held @ query).dtype == np.float32
    assert np.allclose(held @ np.stack([query, query], 1), stands @ np.stack([query, query], 1), atol=1e-5)
    assert (held[:0] @ query).shape == (0,)
    assert np.array_equal(np.ascontiguousarray(held, np.float32), stands)


def test_small_files_are_read_whole_and_other_numbers_refused(tmp_path) -> None:
    for dtype in (np.float16, np.float32, np.float64):
        np.save(tmp_path / f"{np.dtype(dtype)}.npy", np.ones((4, 2), dtype))
    assert isinstance(open_vectors(tmp_path / "float16.npy"), np.ndarray)
    assert isinstance(open_vectors(tmp_path / "float16.npy", whole_bytes=31), HalfVectors)
    assert isinstance(open_vectors(tmp_path / "float32.npy"), np.memmap)
    with pytest.raises(ValueError, match="holds float64"):
        open_vectors(tmp_path / "float64.npy")


def test_an_index_over_halves_is_that_over_what_is_read_of_them_also_in_pieces(job, items, half, tmp_path) -> None:
    artifact = job.artifacts.get(job.embed(job.catalog(items), spec=half))
    read = open_vectors(artifact.path / EMBEDDINGS_FILE)
    for name, memory in (("one", 1 << 30), ("pieces", 200_000)):
        (tmp_path / name).mkdir()
        facts = build_index(job.artifacts, artifact, tmp_path / name, recall=0.9, memory_bytes=memory)
        assert ("shards" in facts) == (name == "pieces")
        index = load_faiss(tmp_path / name, open_vectors(artifact.path / EMBEDDINGS_FILE, whole_bytes=0))
        for query in HashEncoder(16).encode(["Film 12", "about 3 and 4"]):
            rows, scores = index.search(query, 5)
            exact = FlatIndex(read).search(query, 5)
            assert np.allclose(scores, exact[1], atol=1e-5) and np.allclose(read[rows] @ query, exact[1], atol=1e-5)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_release_of_halves_answers_as_one_of_float32(job, items, log_of, spec, half, monkeypatch, mapped) -> None:
    if mapped:
        small = partial(open_vectors, whole_bytes=0)
        for module in ("models.bundle", "pipelines.build"):
            monkeypatch.setattr(f"{module}.open_vectors", small)
    dataset = Dataset("films", items[:800], log_of(users=20, each=6, items=100))
    bundles = []
    for of in (spec, half):
        embedder = Embedder(job.artifacts, of, InlineRunner(lambda: HashEncoder(16)))
        builder = Builder(
            job.artifacts,
            settings=PipelinesSettings(train_ranker=False),
            retrieval=RetrievalSettings(),
            encoder=lambda: HashEncoder(16),
            encoder_uri="hash",
            embedder=embedder,
        )
        release = builder.run(dataset).release
        bundle = load_bundle(job.artifacts, release, settings=RetrievalSettings(), encoder="hash")
        bundles.append(
            bundle.with_changes([(1, ItemChange("put", "x", 1, "X", vector=HashEncoder(16).encode(["X"])[0]))])
        )
    alone = bundles[1].alone
    assert alone is not None and isinstance(alone.embeddings, HalfVectors) == mapped
    for query in HashEncoder(16).encode([f"Film {n} about {n % 7}" for n in range(20)]):
        asked = RetrievalQuery(n=10, now_ms=0, intent=query, personal=False)
        lists = [b.engine.retrieve(asked) for b in bundles]
        scores = [b.embeddings[lists[0].rows] @ query for b in bundles]
        assert np.allclose(*scores, atol=1e-3)
        # The same items, or others that are as near.
        best = [np.sort(bundles[0].embeddings[found.rows] @ query) for found in lists]
        assert np.allclose(*best, atol=1e-3)


def test_a_worker_of_the_pool_writes_what_the_job_asks_for(job, items, half, tmp_path) -> None:
    catalog = job.catalog(items[:100])
    held = ItemCatalog(catalog.path)
    (block,) = cut(catalog_contents(held, ()), held.hashes, np.arange(100, dtype=np.int32), half)
    worker = EncodeBlocks(
        WorkerPlace(str(tmp_path / "artifacts"), tmp_path / "cache", "main", catalog.ref), partial(HashEncoder, 16)
    )
    held_by = (block.key, block.rows.astype("<i4").tobytes(), block.contents.astype("<u8").tobytes(), block.dtype)
    names = ("key", "rows", "contents", "dtype")
    worker({name: np.array([value], object) for name, value in zip(names, held_by, strict=True)})
    found = BlockFolder(job.artifacts).read(block)
    assert np.array_equal(found, HashEncoder(16).encode(held.documents(block.rows)).astype(np.float16))


def test_the_settings_say_what_vectors_are_kept_as(tmp_path) -> None:
    for wanted in ("float32", "float16"):
        overrides = [f"cluster.state={tmp_path}", f"pipelines.embedding.dtype={wanted}"]
        assert Workspace(load_settings("local", overrides, environ={})).encoder_spec().dtype == wanted
    with pytest.raises(SettingsInvalid, match="dtype"):
        load_settings("local", ["pipelines.embedding.dtype=float64"], environ={})
