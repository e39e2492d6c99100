from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.events import EventType
from pipelines.importers import ImportFailed, online_retail

NAMES = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]
AT = "2010-12-01 08:26:00"
KEPT: list[tuple[Any, ...]] = [
    ("1", "85123A", "HOLDER", 6, AT, 2.0, "17850.0"),
    ("1", " 85123a", "HOLDER  RED", 2, "2010-12-01 08:27:00", 3.0, "17850.0"),
    ("2", "85123A", "HOLDER", 1, "2010-12-02 08:26:00", 9.0, "17850.0"),
    ("3", "15056BL", "", 1, AT, 1.0, "99.0"),
]
LEFT_OUT: list[tuple[Any, ...]] = [
    ("4", "85123A", "X", 1, AT, 1.0, ""),
    ("4", "85123A", "X", 1, AT, 1.0, None),
    ("C5", "85123A", "X", 1, AT, 1.0, "99.0"),
    ("6", "85123A", "X", -1, AT, 1.0, "99.0"),
    ("6", "85123A", "X", 1, AT, 0.0, "99.0"),
    ("7", "POST", "POSTAGE", 1, AT, 1.0, "99.0"),
    ("7", "M", "Manual", 1, AT, 1.0, "99.0"),
]


def test_the_cleaning_keeps_products_bought_by_known_customers_and_counts_the_rest(tmp_path: Path) -> None:
    columns = zip(*(KEPT + LEFT_OUT), strict=True)
    pq.write_table(pa.table(dict(zip(NAMES, map(list, columns), strict=True))), tmp_path / "online_retail.parquet")
    dataset = online_retail(tmp_path, rejects=tmp_path / "rejects")
    assert [(i.item_id, i.title, i.numbers) for i in dataset.items] == [
        ("15056BL", "15056BL", {"price": 1.0}),
        ("85123A", "HOLDER", {"price": 3.0}),
    ]
    log = dataset.events
    assert list(zip(log.user_ids, log.item_ids, log.values, strict=True)) == [
        ("17850", "85123A", 8.0),
        ("99", "15056BL", 1.0),
        ("17850", "85123A", 1.0),
    ]
    assert set(log.types) == {EventType.purchase} and log.timestamps_ms[0] == 1_291_191_960_000
    assert sum(dataset.left_out.values()) + len(log) == len(KEPT + LEFT_OUT)
    assert list(dataset.left_out.values()) == [2, 1, 2, 2, 1]


def test_another_parquet_file_is_said_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ImportFailed, match="not the Online Retail table"):
        online_retail(tmp_path / "x.parquet", rejects=tmp_path / "rejects")
    with pytest.raises(ImportFailed, match="not the Online Retail table"):
        online_retail(tmp_path / "none.parquet", rejects=tmp_path / "rejects")
