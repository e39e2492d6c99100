"""Blocks, resume and incremental work, in process."""

from dataclasses import replace

import numpy as np
import pytest

from models.catalog import Item, ItemCatalog, document_of
from models.encoder import HashEncoder
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import BLOCK_ROWS, Block, BlockError, BlockFolder, EncoderSpec, cut
from pipelines.embedding.content import ContentTable, contents_of
from pipelines.embedding.runners import InlineRunner


def test_every_row_gets_the_vector_of_its_own_text(job, items) -> None:
    catalog = job.catalog(items)
    expected = HashEncoder(16).encode([document_of(item) for item in items])
    assert np.array_equal(job.vectors(job.embed(catalog)), expected)


def test_many_documents_at_once_read_as_one_by_one(job) -> None:
    odd = [
        Item("a", "T", "", {}, {"year": 1999.0}),
        Item("b", "U", "text", {"genre": ("x", "y"), "brand": ()}, {}),
        Item("c", "V"),
    ]
    catalog = ItemCatalog(job.catalog(odd).path)
    assert catalog.documents(np.array([2, 0, 1], np.int32)) == [catalog.document(row) for row in (2, 0, 1)]


def test_a_block_does_not_depend_on_where_its_items_stand_in_the_catalog(job, items, spec) -> None:
    catalogs = [ItemCatalog(job.catalog(order).path) for order in (items, items[::-1])]
    keys = []
    for catalog in catalogs:
        rows = np.arange(len(catalog), dtype=np.int32)
        blocks = cut(contents_of(catalog.documents(rows)), catalog.hashes, rows, spec)
        assert [len(b.rows) for b in blocks] == [BLOCK_ROWS, BLOCK_ROWS, 3000 - 2 * BLOCK_ROWS]
        keys.append([b.key for b in blocks])
    assert keys[0] == keys[1]


def test_only_items_whose_text_changed_are_embedded_again(job, items, changed, counting) -> None:
    first = job.embed(job.catalog(items))
    encoder = counting()
    later = job.catalog([*changed(items, 100), Item("new", "Another film")])
    second = job.embed(later, encoder=encoder, previous=first)
    assert encoder.texts == 31
    full = job.embed(later, previous=first, full=True)
    cosine = (job.vectors(second) * job.vectors(full)).sum(axis=1)
    assert cosine.min() >= 1 - 1e-5


def test_an_item_that_only_moves_or_goes_costs_nothing(job, items, counting) -> None:
    first = job.embed(job.catalog(items))
    encoder = counting()
    moved = job.embed(job.catalog(items[:0:-1]), encoder=encoder, previous=first)
    assert encoder.texts == 0
    assert np.array_equal(job.vectors(moved), job.vectors(first)[:0:-1])


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_after_a_kill_a_rerun_computes_the_open_blocks_and_gives_the_same(
    job, items, tmp_path, dies_at, counting
) -> None:
    catalog = job.catalog(items)
    with pytest.raises(KeyboardInterrupt):
        job.embed(catalog, encoder=counting(dies_at=dies_at))
    encoder = counting()
    resumed = job.embed(catalog, encoder=encoder)
    assert encoder.calls == 3 - dies_at
    assert resumed == type(job)(tmp_path / "undisturbed").embed(catalog)
    assert job.blocks() == []


def test_a_kill_between_the_last_block_and_the_artifact_computes_nothing_again(job, items, counting) -> None:
    catalog = job.catalog(items)
    first = job.embed(catalog, forget=False)
    encoder = counting()
    assert job.embed(catalog, encoder=encoder) == first
    assert encoder.calls == 0


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_block_is_computed_again(job, items, damage, counting) -> None:
    catalog = job.catalog(items)
    first = job.embed(catalog, forget=False)
    victim = job.blocks()[1]
    data = bytearray(victim.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    victim.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    encoder = counting()
    assert job.embed(catalog, encoder=encoder) == first
    assert encoder.calls == 1


def test_vectors_of_another_encoder_or_length_of_text_are_not_taken_over(job, items, counting, spec) -> None:
    catalog = job.catalog(items)
    first = job.embed(catalog)
    for other in (EncoderSpec("other"), replace(spec, max_tokens=64)):
        encoder = counting()
        job.embed(catalog, encoder=encoder, previous=first, spec=other)
        assert encoder.texts == len(items)


def test_a_damaged_previous_artifact_costs_time_and_nothing_else(job, items, counting) -> None:
    catalog = job.catalog(items)
    first = job.embed(catalog)
    file = job.artifacts.get(first).path / "embeddings.npy"
    file.write_bytes(file.read_bytes()[:-1])
    encoder = counting()
    job.embed(catalog, encoder=encoder, previous=first)
    assert encoder.texts == len(items)


class _Broken(HashEncoder):
    def __init__(self, value: float) -> None:
        super().__init__(16)
        self.value = value

    def encode(self, texts):
        vectors = super().encode(texts)
        vectors[0, 0] = self.value
        return vectors


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not numbers"), (np.inf, "not numbers"), (9.0, "unit length")])
def test_vectors_that_are_no_unit_vectors_are_refused(job, items, value, said) -> None:
    with pytest.raises(BlockError, match=said):
        job.embed(job.catalog(items), encoder=_Broken(value))
    assert job.blocks() == []


def test_encoders_of_two_lengths_do_not_mix(job, items, counting) -> None:
    catalog = job.catalog(items)
    with pytest.raises(KeyboardInterrupt):
        job.embed(catalog, encoder=counting(8, dies_at=1))
    with pytest.raises(BlockError, match=r"(8|16) dimensions"):
        job.embed(catalog, encoder=counting(16))


def test_progress_counts_what_was_finished_before(job, items, tmp_path, counting, spec) -> None:
    catalog = job.catalog(items)
    with pytest.raises(KeyboardInterrupt):
        job.embed(catalog, encoder=counting(dies_at=1))
    told: list[int] = []
    embedder = Embedder(job.artifacts, spec, InlineRunner(counting))
    embedder.embed(catalog, tmp_path, lambda step, done, total: told.append(done))
    assert told[0] in (BLOCK_ROWS, 3000 - 2 * BLOCK_ROWS) and told[-1] == 3000


def test_a_disk_that_fills_leaves_no_half_block(job, items, monkeypatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LocalFileSystem, "mv", full)
    catalog_rows = Block("k" * 32, np.arange(2, dtype=np.int32), contents_of(["a", "b"]))
    with pytest.raises(OSError, match="No space left"):
        BlockFolder(job.artifacts).write(catalog_rows, HashEncoder(16).encode(["a", "b"]))
    assert job.blocks() == []


def test_contents_are_found_and_strangers_are_not() -> None:
    table = ContentTable(contents_of(["a", "b", "a"]))
    assert table.rows(contents_of(["b", "a", "c"])).tolist() == [1, 0, -1]
    assert ContentTable(contents_of([])).rows(contents_of(["a"])).tolist() == [-1]


@pytest.mark.parametrize(
    ("wanted", "workers", "free", "share"),
    [
        (None, 2, 0.0, 0.0),
        (None, 2, 1.0, 0.5),
        (None, 3, 1.0, 0.33),
        (None, 2, 8.0, 1.0),
        (None, 16, 1.0, 0.0),
        (0.25, 2, 0.0, 0.25),
        (0.0, 2, 4.0, 0.0),
    ],
)
def test_actors_share_the_gpus_that_are_free_unless_the_settings_say_otherwise(wanted, workers, free, share) -> None:
    from pipelines.embedding.runners import _gpus
    from pipelines.embedding.settings import EmbeddingSettings

    found = _gpus(EmbeddingSettings(gpus_per_worker=wanted), workers, free)
    assert found == share and (wanted is not None or found * workers <= free)
