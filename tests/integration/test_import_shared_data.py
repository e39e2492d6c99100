"""The importers on whole real data sets, where a copy of them lies beside the repository."""

import csv
from pathlib import Path

import numpy as np
import pytest

from models.events import EventType
from models.hub.entries import hash_files
from pipelines.dataset import read_dataset, write_dataset
from pipelines.importers import amazon_industrial, movielens_small, online_retail
from pipelines.importers.amazon import TEST_MS, VALID_MS

DATA = Path(__file__).parents[3] / "shared" / "data"


def data(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no copy of {name} at ../shared/data beside the repository")
    return DATA / name


def test_online_retail_is_cleaned_to_the_documented_counts(tmp_path: Path) -> None:
    dataset = online_retail(data("online-retail"), rejects=tmp_path / "rejects")
    assert (len(dataset.items), len(dataset.events)) == (3_659, 386_326)
    assert sum(dataset.left_out.values()) + len(dataset.events) == 541_909
    assert {i.item_id: i.title for i in dataset.items}["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
    assert set(np.unique(dataset.events.types)) == {EventType.purchase}
    write_dataset(dataset, tmp_path / "set")
    read = read_dataset(tmp_path / "set")
    np.testing.assert_array_equal(read.events.user_ids, dataset.events.user_ids)
    assert read.items == dataset.items


def test_movielens_small_is_imported_whole_and_leaves_its_source_alone(tmp_path: Path) -> None:
    source = data("movielens-small")
    before = hash_files(source)
    dataset = movielens_small(source, rejects=tmp_path / "rejects")
    assert (len(dataset.items), len(dataset.events), len(set(dataset.events.user_ids))) == (9_742, 100_836, 610)
    assert sum(bool(i.text) for i in dataset.items) == 6_347
    assert sum("year" in i.numbers for i in dataset.items) > 9_720
    assert "The African Queen" in {i.title for i in dataset.items}
    assert dataset.left_out == {} and hash_files(source) == before


def test_amazon_industrial_keeps_every_order_that_the_tables_tell(tmp_path: Path) -> None:
    source = data("amazon-industrial")
    dataset = amazon_industrial(source, rejects=tmp_path / "rejects")
    assert (len(dataset.items), len(set(dataset.events.user_ids))) == (3_686, 3_285)
    assert not dataset.left_out
    assert sum(bool(i.text) for i in dataset.items) > 3_400
    assert not any(i.text.startswith("[") for i in dataset.items)
    at = dataset.events.timestamps_ms
    assert ((at >= VALID_MS) & (at < TEST_MS)).sum() >= 4_532 and (at >= TEST_MS).sum() == 4_533
    with (source / "test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for place in (0, 17, 4_000, len(rows) - 1):
        own = dataset.events.user_ids == rows[place]["user_id"]
        before = own & (at < TEST_MS + place * 3_600_000)
        told = [n.strip() for n in rows[place]["history_item_id"].strip("[]").split(",")]
        assert dataset.events.item_ids[before].tolist()[-len(told) :] == told
        assert dataset.events.item_ids[own & (at == TEST_MS + place * 3_600_000)].tolist() == [rows[place]["item_id"]]
