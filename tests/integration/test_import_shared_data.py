"""The importers on whole real data sets, where a copy of them lies beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from models.events import EventType
from models.hub.entries import hash_files
from pipelines.dataset import read_dataset, write_dataset
from pipelines.importers import movielens_small, online_retail

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
