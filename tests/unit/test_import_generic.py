import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.events import EventType
from pipelines.importers import ImportFailed, generic
from pipelines.importers.readers import MAX_LINE_BYTES

AT = 1_700_000_000_000
ITEMS = [
    {"id": "a", "title": "Alpha", "text": "first", "attributes": {"brand": "x", "tags": ["t", "u"], "price": 2.5}},
    {"id": "b", "title": "Beta", "attributes": {"new": True, "brand": None}},
]
EVENT = {"user": "u-1", "item": "a", "type": "click", "time": AT}


def lines(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def run(tmp_path: Path, items: Iterable[Any], events: Iterable[Any], **options: Any) -> Any:
    return generic(
        lines(tmp_path / "items.jsonl", items),
        lines(tmp_path / "events.jsonl", events),
        rejects=tmp_path / "rejects.jsonl",
        **options,
    )


def rejected(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()]


def test_good_rows_become_items_and_events(tmp_path: Path) -> None:
    events = [dict(EVENT, time=AT + 5), dict(EVENT, item="b", type="rating", value=4), dict(EVENT, user=7)]
    dataset = run(tmp_path, ITEMS, events)
    alpha, beta = dataset.items
    assert (alpha.title, alpha.text, alpha.numbers) == ("Alpha", "first", {"price": 2.5})
    assert alpha.labels == {"brand": ("x",), "tags": ("t", "u")}
    assert beta.labels == {"new": ("true",)}
    log = dataset.events
    assert list(log.timestamps_ms) == [AT, AT, AT + 5]
    assert list(log.item_ids) == ["b", "a", "a"] and list(log.user_ids) == ["u-1", "7", "u-1"]
    assert list(log.types) == [EventType.rating, EventType.click, EventType.click]
    assert list(log.values) == [4.0, 1.0, 1.0]
    assert not (tmp_path / "rejects.jsonl").exists() and dataset.left_out == {}


@pytest.mark.parametrize(
    "given", ["2023-11-14T22:13:20Z", "2023-11-14T22:13:20", "2023-11-15T00:13:20+02:00", "2023-11-14 22:13:20.000"]
)
def test_iso_times_are_read_and_are_utc_where_no_zone_is_given(tmp_path: Path, given: str) -> None:
    assert run(tmp_path, ITEMS, [dict(EVENT, time=given)]).events.timestamps_ms[0] == AT


BAD_ITEMS: list[tuple[Any, str]] = [
    ("{not json", "broken JSON"),
    ("[1]", "line: not a JSON object"),
    ("x" * (MAX_LINE_BYTES + 10), "line: longer than"),
    ({"title": "t"}, "id: missing"),
    ({"id": "a b", "title": "t"}, "id: not a valid id"),
    ({"id": "x" * 129, "title": "t"}, "id: not a valid id"),
    ({"id": ["c"], "title": "t"}, "id: list where text is expected"),
    ({"id": True, "title": "t"}, "id: bool where text is expected"),
    ({"id": "a", "title": "again"}, "duplicate item id: a"),
    ({"id": "c"}, "title: missing or blank"),
    ({"id": "c", "title": "  "}, "title: missing or blank"),
    ({"id": "c", "title": 5}, "title: int where text is expected"),
    ({"id": "c", "title": "t" * 1001}, "title: 1001 characters"),
    ({"id": "c", "title": "a\u0000b"}, "title: holds control characters"),
    ({"id": "c", "title": "t", "text": {}}, "text: dict where text is expected"),
    ({"id": "c", "title": "t", "txet": "typo"}, "unknown field: 'txet'"),
    ({"id": "c", "title": "t", "attributes": ["x"]}, "attributes: list where an object is expected"),
    ({"id": "c", "title": "t", "attributes": {"": "x"}}, "attributes: a name must have"),
    ({"id": "c", "title": "t", "attributes": {"tags": ["x", 1]}}, "attribute tags: neither text"),
    ({"id": "c", "title": "t", "attributes": {"tags": {"x": 1}}}, "attribute tags: neither text"),
    ({"id": "c", "title": "t", "attributes": {"price": "cheap"}}, "attribute price: a label here, but a number"),
    ({"id": "c", "title": "t", "attributes": {"praised_for": "x"}}, "attribute praised_for: only what reviews say"),
    ({"id": "c", "title": "t", "attributes": {"price": 1e300}}, "attribute price: not a finite number"),
]

BAD_EVENTS: list[tuple[Any, str]] = [
    ("{", "broken JSON"),
    ('{"user": NaN}', "broken JSON"),
    ({k: v for k, v in EVENT.items() if k != "user"}, "user: missing"),
    ({k: v for k, v in EVENT.items() if k != "item"}, "item: missing"),
    ({k: v for k, v in EVENT.items() if k != "type"}, "type: what is given is none of"),
    ({k: v for k, v in EVENT.items() if k != "time"}, "time: missing"),
    (dict(EVENT, user=""), "user: not a valid id"),
    (dict(EVENT, user=1.5), "user: float where text is expected"),
    (dict(EVENT, item="zzz"), "unknown item: zzz"),
    (dict(EVENT, type="clik"), "type: 'clik' is none of impression, view, click"),
    (dict(EVENT, type="search"), "type: 'search' is none of"),
    (dict(EVENT, type=2), "type: what is given is none of"),
    (dict(EVENT, time=AT // 1000), "were seconds given for milliseconds?"),
    (dict(EVENT, time=-1), "before 1990"),
    (dict(EVENT, time=int(time.time() * 1000) + 2 * 86_400_000), "in the future"),
    (dict(EVENT, time="2023-13-40"), "no ISO 8601 time"),
    (dict(EVENT, time=True), "time: bool where"),
    (dict(EVENT, time=1.5), "time: float where"),
    (dict(EVENT, value="4"), "value: str where a number is expected"),
    (dict(EVENT, value=True), "value: bool where a number is expected"),
    (dict(EVENT, value=1e39), "value: not a finite number"),
    (dict(EVENT, type="rating"), "value: missing, a rating needs one"),
    (dict(EVENT, rating=4), "unknown field: 'rating'"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ITEMS)
def test_a_bad_item_is_rejected_with_its_row_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    dataset = run(tmp_path, [ITEMS[0], row, ITEMS[1]], [], max_bad_rows=1)
    assert [i.item_id for i in dataset.items] == ["a", "b"]
    (entry,) = rejected(tmp_path)
    assert (entry["file"], entry["row"]) == ("items.jsonl", 2) and reason in entry["reason"]
    assert sum(dataset.left_out.values()) == 1


@pytest.mark.parametrize(("row", "reason"), BAD_EVENTS)
def test_a_bad_event_is_rejected_with_its_row_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    dataset = run(tmp_path, ITEMS, [EVENT, row, EVENT], max_bad_rows=1)
    assert len(dataset.events) == 2
    (entry,) = rejected(tmp_path)
    assert (entry["file"], entry["row"]) == ("events.jsonl", 2) and reason in entry["reason"]


def test_one_bad_row_more_than_allowed_fails_and_lists_the_first_ten(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed) as failure:
        run(tmp_path, ITEMS, [dict(EVENT, type="clik")] * 12, max_bad_rows=11)
    message = str(failure.value)
    assert "12 bad rows, 11 allowed" in message and "--max-bad-rows 12" in message
    assert "events.jsonl row 10:" in message and "row 11:" not in message and "and 2 more" in message
    assert [r["row"] for r in rejected(tmp_path)] == list(range(1, 13))


def test_no_user_id_reaches_the_message_or_the_rejects(tmp_path: Path) -> None:
    secret = "someone-4711"
    rows = [
        {"user": secret + " ", "item": "a", "type": "click", "time": AT},
        {"user": "u", "item": "a", "type": secret, "time": AT},
        {"user": "u", "item": "a", "type": "click", "time": secret},
        {"user": secret, "item": "a", "type": "click", "time": AT, secret: 1},
        {"user": [secret], "item": "a", "type": "click", "time": AT},
    ]
    with pytest.raises(ImportFailed) as failure:
        run(tmp_path, ITEMS, rows)
    assert secret not in str(failure.value) and secret not in (tmp_path / "rejects.jsonl").read_text()


def test_the_rejects_of_an_earlier_import_do_not_stay(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed):
        run(tmp_path, ITEMS, ["{"])
    run(tmp_path, ITEMS, [EVENT])
    assert not (tmp_path / "rejects.jsonl").exists()


def test_a_line_that_is_too_long_does_not_shift_later_row_numbers(tmp_path: Path) -> None:
    run(tmp_path, ITEMS, ["x" * (3 * MAX_LINE_BYTES), "", "{"], max_bad_rows=2)
    assert [r["row"] for r in rejected(tmp_path)] == [1, 3]


def test_a_missing_or_foreign_file_fails_with_its_name(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    for path, says in (
        ("none.jsonl", "no such file"),
        ("events.xlsx", "convert"),
        ("events.parquet", "not a readable"),
    ):
        if path != "none.jsonl":
            (tmp_path / path).write_text("x")
        with pytest.raises(ImportFailed, match=says):
            generic(items, tmp_path / path, rejects=tmp_path / "rejects.jsonl")


def test_parquet_says_the_same_as_json_lines(tmp_path: Path) -> None:
    attributes = pa.map_(pa.string(), pa.list_(pa.string()))
    pq.write_table(
        pa.table(
            {"id": ["a", "b"], "title": ["A", "B"], "attributes": pa.array([[("tags", ["t"])], None], attributes)}
        ),
        tmp_path / "items.parquet",
    )
    moment = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    pq.write_table(
        pa.table(
            {
                "user": ["u", "u", None, "u"],
                "item": ["a", "b", "a", "a"],
                "type": ["view", "rating", "view", "rating"],
                "time": pa.array([moment] * 4, pa.timestamp("ns", "UTC")),
                "value": [None, 3.0, None, float("nan")],
            }
        ),
        tmp_path / "events.parquet",
    )
    rejects = tmp_path / "rejects.jsonl"
    dataset = generic(tmp_path / "items.parquet", tmp_path / "events.parquet", rejects=rejects, max_bad_rows=2)
    assert dataset.items[0].labels == {"tags": ("t",)}
    np.testing.assert_array_equal(dataset.events.timestamps_ms, [AT, AT])
    assert list(dataset.events.values) == [1.0, 3.0]
    assert [(r["row"], r["reason"]) for r in rejected(tmp_path)] == [
        (3, "user: missing"),
        (4, "value: not a finite number"),
    ]


def test_parquet_attributes_may_be_a_struct_or_json_text(tmp_path: Path) -> None:
    events = lines(tmp_path / "events.jsonl", [])
    for name, column in {
        "struct": pa.array([{"brand": "x", "price": 2.0}]),
        "text": pa.array([json.dumps({"brand": "x", "price": 2.0})]),
    }.items():
        pq.write_table(pa.table({"id": ["a"], "title": ["A"], "attributes": column}), tmp_path / f"{name}.parquet")
        (item,) = generic(tmp_path / f"{name}.parquet", events, rejects=tmp_path / "rejects.jsonl").items
        assert item.labels == {"brand": ("x",)} and item.numbers == {"price": 2.0}


def test_an_empty_catalogue_and_no_events_are_a_data_set_of_nothing(tmp_path: Path) -> None:
    dataset = run(tmp_path, [], [])
    assert dataset.items == [] and len(dataset.events) == 0
