"""Reviews come in with the catalogue: bad ones are numbered, and who wrote one is not kept."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.prepare import import_dataset
from models.reviews import Review
from pipelines.dataset import Dataset, read_dataset, write_dataset
from pipelines.importers import generic

AT = 1_700_000_000_000
GOOD = {"item": "a", "text": "A great soundtrack.", "rating": 4.5, "user": "u-1", "time": AT}
TAGS = Path(__file__).parents[3] / "shared" / "data" / "movielens-small" / "tags.csv"


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def run(tmp_path: Path, reviews: Path, *, items: tuple[str, ...] = ("a", "b"), max_bad_rows: int = 0) -> Dataset:
    return generic(
        lines(tmp_path / "items.jsonl", [{"id": i, "title": f"Item {i}"} for i in items]),
        lines(tmp_path / "events.jsonl", []),
        reviews=reviews,
        rejects=tmp_path / "rejects.jsonl",
        max_bad_rows=max_bad_rows,
    )


def test_reviews_are_cleaned_grouped_and_newest_first(tmp_path: Path) -> None:
    older = {"item": "a", "text": "  <|im_end|> Fine\u200b story ", "time": AT - 5}
    data = run(tmp_path, lines(tmp_path / "r.jsonl", [older, GOOD, {"item": "b", "text": "ok"}]))
    assert data.reviews == {
        "a": (Review("A great soundtrack.", 4.5, 1, AT), Review("im_end Fine story", None, 0, AT - 5)),
        "b": (Review("ok"),),
    }


def test_who_wrote_is_a_number_within_the_item_and_nothing_else(tmp_path: Path) -> None:
    rows = [GOOD, dict(GOOD, user="u-2"), GOOD, {"item": "a", "text": "x"}, {"item": "a", "text": "y"}]
    rows.append(dict(GOOD, item="b", user="u-2"))
    data = run(tmp_path, lines(tmp_path / "r.jsonl", rows))
    assert sorted(r.writer for r in data.reviews["a"]) == [0, 0, 1, 2, 3]
    assert [r.writer for r in data.reviews["b"]] == [0]
    write_dataset(data, tmp_path / "set")
    assert all(b"u-2" not in file.read_bytes() for file in (tmp_path / "set").iterdir())


BAD: list[tuple[Any, str]] = [
    ("{not json", "broken JSON"),
    ({"text": "x"}, "item: missing"),
    ({"item": "zzz", "text": "x"}, "unknown item: zzz"),
    ({"item": "a b", "text": "x"}, "item: not a valid id"),
    ({"item": "a"}, "text: missing, or nothing"),
    ({"item": "a", "text": "   "}, "text: missing, or nothing"),
    ({"item": "a", "text": "\u200b\u202e"}, "text: missing, or nothing"),
    ({"item": "a", "text": "10/10 !!!"}, "text: missing, or nothing"),
    ({"item": "a", "text": ["x"]}, "text: list where text is expected"),
    ({"item": "a", "text": "x" * 10_001}, "text: 10001 characters, at most 10000"),
    ({"item": "a", "text": "a\u0000b"}, "text: holds control characters"),
    (dict(GOOD, rating="4"), "rating: str where a number is expected"),
    (dict(GOOD, rating=True), "rating: bool where a number is expected"),
    (dict(GOOD, rating=5.5), "rating: not between 0 and 5"),
    (dict(GOOD, rating=-1), "rating: not between 0 and 5"),
    (dict(GOOD, user="not an id"), "user: not a valid id"),
    (dict(GOOD, user=["u"]), "user: list where text is expected"),
    (dict(GOOD, time=AT // 1000), "were seconds given for milliseconds?"),
    (dict(GOOD, time=int(time.time() * 1000) + 2 * 86_400_000), "in the future"),
    (dict(GOOD, time="soon"), "no ISO 8601 time"),
    (dict(GOOD, stars=4), "unknown field: 'stars'"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_bad_review_is_rejected_with_its_row_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    data = run(tmp_path, lines(tmp_path / "r.jsonl", [GOOD, row, GOOD]), max_bad_rows=1)
    assert len(data.reviews["a"]) == 2
    (entry,) = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert (entry["file"], entry["row"]) == ("r.jsonl", 2) and reason in entry["reason"]
    assert "u-1" not in entry["reason"] and "not an id" not in entry["reason"]


def test_csv_and_parquet_say_the_same_as_json_lines(tmp_path: Path) -> None:
    expected = run(tmp_path, lines(tmp_path / "r.jsonl", [GOOD, {"item": "b", "text": "ok"}])).reviews
    table = tmp_path / "r.csv"
    table.write_text(f'item,text,rating,user,time\na,A great soundtrack.,4.5,u-1,{AT}\nb,"ok",,,\n', "utf-8")
    assert run(tmp_path, table).reviews == expected
    columns = {name: [GOOD[name], None] for name in ("rating", "user", "time")}
    pq.write_table(pa.table({"item": ["a", "b"], "text": [GOOD["text"], "ok"], **columns}), tmp_path / "r.parquet")
    assert run(tmp_path, tmp_path / "r.parquet").reviews == expected


def test_a_csv_that_holds_words_for_numbers_is_refused_row_by_row(tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text("item,text,rating,time\na,x,good,\na,x,nan,\na,x,,later\na,x\na,x,4,\n", "utf-8")
    assert len(run(tmp_path, table, max_bad_rows=4).reviews["a"]) == 1
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]
    assert [r[:11] for r in reasons] == ["rating: str", "rating: not", "time: text ", "cells: 2, t"]


def test_a_data_set_keeps_its_reviews_and_one_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    data = run(tmp_path, lines(tmp_path / "r.jsonl", [GOOD, {"item": "b", "text": "ok"}]))
    write_dataset(data, tmp_path / "set")
    assert read_dataset(tmp_path / "set").reviews == data.reviews
    head = json.loads((tmp_path / "set" / "dataset.json").read_text())
    del head["reviews"]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(head))
    assert read_dataset(tmp_path / "set").reviews == {}


def test_the_command_takes_reviews_for_the_generic_form_alone(tmp_path: Path) -> None:
    settings = load_settings("local", [f"cluster.state={tmp_path / 'state'}"], environ={})
    paths: dict[str, Path | None] = {
        "items": lines(tmp_path / "items.jsonl", [{"id": "a", "title": "A"}]),
        "events": lines(tmp_path / "events.jsonl", []),
        "reviews": lines(tmp_path / "r.jsonl", [GOOD]),
    }
    data = import_dataset(settings, "generic", paths=paths)
    assert read_dataset(tmp_path / "state" / "data" / "generic").reviews == data.reviews != {}
    with pytest.raises(OperatorError, match="takes no --reviews"):
        import_dataset(settings, "online-retail", paths={"path": tmp_path, "reviews": paths["reviews"]})


@pytest.mark.skipif(not TAGS.is_file(), reason=f"{TAGS} is not there")
def test_real_tags_come_in_as_short_reviews(tmp_path: Path) -> None:
    with TAGS.open(encoding="utf-8", newline="") as file:
        tags = list(csv.DictReader(file))
    rows = [
        {"item": t["movieId"], "user": t["userId"], "text": t["tag"], "time": int(t["timestamp"]) * 1000} for t in tags
    ]
    items = tuple(dict.fromkeys(t["movieId"] for t in tags))
    data = run(tmp_path, lines(tmp_path / "tags.jsonl", rows), items=items, max_bad_rows=len(rows) // 50)
    assert sum(map(len, data.reviews.values())) + sum(data.left_out.values()) == len(rows) > 3000
