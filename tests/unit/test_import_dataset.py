import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from models.catalog import Item
from models.events import EventLog, EventType
from pipelines import dataset as module
from pipelines.dataset import Dataset, DatasetError, read_dataset, write_dataset

ITEMS = [
    Item("a", "Älpha", "text", {"genre": ("x", "y"), "label:odd": ("z",)}, {"year": 1999.0}),
    Item("b", "Beta"),
]
EVENTS = EventLog(
    np.array(["u", "v"], object),
    np.array(["b", "a"], object),
    np.array([EventType.click, EventType.rating], np.uint8),
    np.array([1, 4.5], np.float32),
    np.array([10, 20], np.int64),
)
DATASET = Dataset("demo", ITEMS, EVENTS, {"u": {"age": "24"}}, "free", {"no customer": 3})


def test_a_data_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_dataset(DATASET, tmp_path / "set")
    read = read_dataset(tmp_path / "set")
    for name in ("name", "items", "users", "licence", "left_out"):
        assert getattr(read, name) == getattr(DATASET, name)
    for column in dataclasses.fields(EventLog):
        np.testing.assert_array_equal(getattr(read.events, column.name), getattr(EVENTS, column.name))


def test_an_empty_data_set_round_trips(tmp_path: Path) -> None:
    write_dataset(Dataset("none", [], EventLog.empty()), tmp_path / "set")
    assert read_dataset(tmp_path / "set").items == []


def test_writing_again_replaces_and_leaves_no_rests(tmp_path: Path) -> None:
    write_dataset(DATASET, tmp_path / "set")
    write_dataset(dataclasses.replace(DATASET, users={}), tmp_path / "set")
    assert read_dataset(tmp_path / "set").users == {}
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_failed_write_leaves_the_older_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(DATASET, tmp_path / "set")
    with pytest.raises(TypeError):
        write_dataset(dataclasses.replace(DATASET, left_out={"x": object()}), tmp_path / "set")
    assert read_dataset(tmp_path / "set").name == "demo"
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_folder_with_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(DatasetError, match="no data set"):
        write_dataset(DATASET, tmp_path)
    assert (tmp_path / "precious").exists()


def test_missing_damaged_and_foreign_data_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.json missing; run `raycommend import`"):
        read_dataset(tmp_path / "none")
    folder = tmp_path / "set"
    write_dataset(DATASET, folder)
    head = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(head | {"format": module.FORMAT + 1}))
    with pytest.raises(DatasetError, match="import it again"):
        read_dataset(folder)
    (folder / "dataset.json").write_text(json.dumps(head | {"events": 5}))
    with pytest.raises(DatasetError, match="other counts"):
        read_dataset(folder)
    (folder / "dataset.json").write_text(json.dumps(head))
    (folder / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="not a readable data set"):
        read_dataset(folder)
