"""Online Retail (UCI): a shop's invoices as `purchase` events; `value` is the quantity.

Kept are lines with a customer, of an invoice that was not cancelled, with quantity and price above 0, and of a
product: a stock code of five digits and optional letters (postage, fees and manual entries have other codes). Codes
are trimmed and upper-cased ("85123a" is "85123A"); "17850.0" is customer 17850. Lines of one customer, item and
invoice become one event with the sum of their quantities at the first one's time. Times are the shop's local ones,
read as UTC. An item's title is its most frequent description, its number `price` the median.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from models.progress import Progress, silent
from pipelines.dataset import Dataset
from pipelines.importers.collect import collect
from pipelines.importers.rejects import ImportFailed, Rejects
from pipelines.importers.rows import EventRows, ItemRows

_COLUMNS = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID"]
_PRODUCT = r"^[0-9]{5}[A-Z]*$"
_LICENCE = "Online Retail, UCI Machine Learning Repository: CC BY 4.0, doi:10.24432/C5BW33"


def online_retail(path: Path, *, rejects: Path, max_bad_rows: int = 0, progress: Progress = silent) -> Dataset:
    """Import the Parquet file `path` (or `online_retail.parquet` in that folder). Raises ImportFailed.

    What the cleaning leaves out is counted in `left_out`; a cleaned row that still cannot be used is a bad row.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = path / "online_retail.parquet" if path.is_dir() else path
    progress(f"read {file.name}", 0, None)
    try:
        lines, left_out = _clean(pq.read_table(file, columns=_COLUMNS))
    except (pa.ArrowException, OSError) as error:
        raise ImportFailed(f"{file}: not the Online Retail table ({error})") from error
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    items = ItemRows()
    try:
        collect(file, enumerate(_items(lines), start=1), items.add, rejects=bad, progress=progress)
        events = EventRows(i.item_id for i in items.items)
        collect(file, _events(lines), events.add, rejects=bad, progress=progress)
        bad.finish()
    finally:
        bad.close()
    left_out["merged into the event of the same customer, item and invoice"] = lines.num_rows - len(events) - bad.count
    return Dataset("online-retail", items.items, events.log(), licence=_LICENCE, left_out=left_out | dict(bad.reasons))


def _clean(table: Any) -> tuple[Any, dict[str, int]]:
    """Return the kept lines with `row`, `code`, `customer` and `time` (ms), and how many lines each rule left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = table.append_column("row", pa.array(range(1, table.num_rows + 1), pa.int64()))
    code = pc.utf8_upper(pc.utf8_trim_whitespace(table["StockCode"]))
    customer = pc.replace_substring_regex(pc.fill_null(table["CustomerID"], ""), r"\.0$", "")
    time = pc.strptime(table["InvoiceDate"], format="%Y-%m-%d %H:%M:%S", unit="ms").cast(pa.int64())
    for name, column in {"code": code, "customer": customer, "time": time}.items():
        table = table.append_column(name, column)
    left_out: dict[str, int] = {}
    for reason, keeps in {
        "no customer": lambda t: pc.not_equal(t["customer"], ""),
        "cancelled invoice": lambda t: pc.invert(pc.starts_with(t["InvoiceNo"], "C")),
        "quantity or price not above 0": lambda t: pc.and_(pc.greater(t["Quantity"], 0), pc.greater(t["UnitPrice"], 0)),
        "not a product code": lambda t: pc.match_substring_regex(t["code"], _PRODUCT),
    }.items():
        kept = table.filter(keeps(table))
        left_out[reason] = table.num_rows - kept.num_rows
        table = kept
    return table, left_out


def _items(lines: Any) -> list[dict[str, Any]]:
    """Return one item per code, in the order of codes; ties between descriptions go to the first in the alphabet."""
    titles: dict[str, Counter[str]] = {}
    prices: dict[str, list[float]] = {}
    columns = (lines[name].to_pylist() for name in ("code", "Description", "UnitPrice"))
    for code, description, price in zip(*columns, strict=True):
        titles.setdefault(code, Counter())[" ".join((description or "").split())] += 1
        prices.setdefault(code, []).append(price)
    items = []
    for code in sorted(titles):
        title = min(titles[code], key=lambda t: (not t, -titles[code][t], t))
        price = sorted(prices[code])[len(prices[code]) // 2]
        items.append({"id": code, "title": title or code, "attributes": {"price": price}})
    return items


def _events(lines: Any) -> Any:
    """Yield one purchase per customer, item and invoice, numbered by its first line in the file."""
    sums = lines.group_by(["customer", "code", "InvoiceNo"], use_threads=False).aggregate(
        [("Quantity", "sum"), ("time", "min"), ("row", "min")]
    )
    sums = sums.sort_by("row_min")
    columns = (sums[name].to_pylist() for name in ("row_min", "customer", "code", "Quantity_sum", "time_min"))
    for row, customer, code, quantity, time in zip(*columns, strict=True):
        yield row, {"user": customer, "item": code, "type": "purchase", "time": time, "value": quantity}
