"""Readers: stream the rows of a JSON-lines, Parquet or delimited file, numbered from 1.

A row that cannot be read at all is yielded as a `BadRow` in its place, so that it is counted like any other.
Called by the importers and by `reembed --catalog`. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.importers.rejects import ImportFailed
from pipelines.importers.rows import BadRow

MAX_LINE_BYTES = 1 << 20
_BATCH_ROWS = 20_000
Row = tuple[int, Mapping[str, Any] | BadRow]


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the rows of a `.parquet`, `.jsonl`, `.ndjson` or `.json` (lines) file. Raises ImportFailed."""
    if not path.is_file():
        raise ImportFailed(f"{path}: no such file")
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in {".jsonl", ".ndjson", ".json"}:
        return _opened(path)
    raise ImportFailed(f"{path}: neither .parquet nor .jsonl; convert it to one of the two")


def delimited(path: Path, *, delimiter: str = ",", quoted: bool = True) -> Iterator[Row]:
    """Yield the rows of a delimited UTF-8 file with a header; row 1 is the header. Raises ImportFailed."""
    if not path.is_file():
        raise ImportFailed(f"{path}: no such file")
    with path.open(encoding="utf-8", newline="") as file:
        quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=quoted)  # type: ignore[arg-type]
        try:
            names = next(reader, [])
            for row, cells in enumerate(reader, start=2):
                if len(cells) == len(names):
                    yield row, dict(zip(names, cells, strict=True))
                else:
                    yield row, BadRow(f"cells: {len(cells)}, the header has {len(names)}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise ImportFailed(f"{path}: cannot be read on from line {reader.line_num} ({error})") from error


def json_lines(file: BinaryIO) -> Iterator[Row]:
    """Yield the objects of a file of one JSON object a line; empty lines count and give nothing."""
    import orjson

    row = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        row += 1
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES)
            yield row, BadRow(f"line: longer than {MAX_LINE_BYTES} bytes")
            continue
        if line.isspace():
            continue
        try:
            parsed = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield row, BadRow(f"broken JSON: {error.msg} at character {error.pos}")
            continue
        yield row, parsed if isinstance(parsed, dict) else BadRow("line: not a JSON object")


def attributes_of(value: Any) -> Any:
    """Return what a column file says of attributes: a struct, a map (a list of pairs), or JSON text.

    What is none of them comes back as it is: the check of the row refuses it with its reason.
    """
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return dict(value) if isinstance(value, list) and all(isinstance(v, tuple) for v in value) else value


def _opened(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        yield from json_lines(file)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                columns = {name: _plain(batch.column(i)) for i, name in enumerate(batch.schema.names)}
                if "attributes" in columns:
                    columns["attributes"] = [attributes_of(value) for value in columns["attributes"]]
                for cells in zip(*columns.values(), strict=True):
                    row += 1
                    yield row, dict(zip(columns, cells, strict=True))
    except (pa.ArrowException, OSError) as error:
        raise ImportFailed(f"{path}: not a readable Parquet file ({error})") from error


def _plain(column: Any) -> list[Any]:
    """Return Python values; nanoseconds have no Python type and are cut to microseconds."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    return list(column.to_pylist())
