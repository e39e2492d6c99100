"""Amazon Industrial and Scientific: what the tables tell becomes events in their order; bad rows are numbered."""

import json

import pytest

from pipelines.importers import ImportFailed, amazon_industrial
from pipelines.importers.amazon import HOUR_MS, TEST_MS, VALID_MS

HEAD = "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"


def row(user, past, item):
    return f'{user},"[]",title,"{past}",{item},"[]",x\n'


@pytest.fixture
def folder(tmp_path):
    items = {
        "0": {"title": "Tape", "description": "['Strong', 'and 3\" wide']", "brand": "Acme", "categories": ""},
        "1": {"title": "Glue", "description": "[]", "brand": "", "categories": ""},
        "2": {"title": "胶带 🩹 شريط", "description": "", "brand": "Acme", "categories": ""},
        "3": {"title": "Nail", "description": "['plain text", "brand": "B", "categories": ""},
    }
    (tmp_path / "I.item.json").write_text(json.dumps(items), "utf-8")
    (tmp_path / "valid.csv").write_text(HEAD + row("A", [0, 1, 1], 2) + row("B", [3], 0) + row("A", [0, 1, 1, 2], 3))
    (tmp_path / "test.csv").write_text(HEAD + row("C", [2, 3], 1) + row("B", [3, 0], 2))
    return tmp_path


def test_histories_come_before_the_rows_and_rows_in_their_order(folder):
    dataset = amazon_industrial(folder, rejects=folder / "rejects")
    log = dataset.events
    told = {u: log.item_ids[log.user_ids == u].tolist() for u in ("A", "B", "C")}
    assert told == {"A": ["0", "1", "1", "2", "3"], "B": ["3", "0", "2"], "C": ["2", "3", "1"]}
    at = log.timestamps_ms[log.user_ids == "A"].tolist()
    assert at == [VALID_MS + hour * HOUR_MS for hour in (-3, -2, -1, 0, 2)]
    assert log.timestamps_ms[log.user_ids == "C"].tolist() == [TEST_MS + hour * HOUR_MS for hour in (-2, -1, 0)]
    texts = [(i.title, i.text, dict(i.labels)) for i in dataset.items]
    assert texts[0] == ("Tape", 'Strong and 3" wide', {"brand": ("Acme",)})
    assert texts[1] == ("Glue", "", {}) and texts[2][0] == "胶带 🩹 شريط" and texts[3][1] == "plain text"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("A", "0, x", 2), "history_item_id: not a list of numbers"),
        (row("A", [0], 99), "unknown item: 99 is not among the items"),
        (row("a b", [], 2), "user: not a valid id"),
        ("A,too,few\n", "cells: 3, the header has 7"),
    ],
)
def test_a_bad_row_is_numbered_and_fails_the_import_unless_it_is_allowed(folder, bad, reason):
    with (folder / "test.csv").open("a") as file:
        file.write(bad)
    with pytest.raises(ImportFailed, match="1 bad rows"):
        amazon_industrial(folder, rejects=folder / "rejects")
    dataset = amazon_industrial(folder, rejects=folder / "rejects", max_bad_rows=1)
    line = json.loads((folder / "rejects").read_text().splitlines()[0])
    assert line["file"] == "test.csv" and line["row"] == 4 and reason in line["reason"]
    assert sum(dataset.left_out.values()) == 1


def test_another_folder_is_refused_in_one_sentence(folder, tmp_path_factory):
    with pytest.raises(ImportFailed, match=r"no \*\.item\.json"):
        amazon_industrial(tmp_path_factory.mktemp("empty"), rejects=folder / "rejects")
    (folder / "valid.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ImportFailed, match="no column"):
        amazon_industrial(folder, rejects=folder / "rejects")
