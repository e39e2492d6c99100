"""Reads a catalog with Ray Data: Parquet, JSON lines or Arrow files, local, in S3 or at any fsspec URL.

Rows are read side by side, each with its file and number; they are then checked in that order by the same rules as
`import generic`, so which rows are bad does not depend on how the reading was spread. Called by `reembed --catalog`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from models.catalog import Item
from models.progress import Progress, silent
from pipelines.embedding.places import files_at, suffix, why
from pipelines.embedding.runners import quiet_ray_data
from pipelines.importers.readers import Row, attributes_of, json_lines
from pipelines.importers.rejects import ImportFailed, Rejects
from pipelines.importers.rows import BadRow, ItemRows

JSON_LINES = frozenset({".jsonl", ".ndjson", ".json"})
ARROW = frozenset({".arrow", ".feather", ".ipc"})
PARQUET = frozenset({".parquet"})
_READ_BYTES = 1 << 20
_MOST_BLOCKS = 64
"""Tasks that read a catalog: thousands of small files need no task each."""


def read_items(url: str, *, rejects: Path, max_bad_rows: int, progress: Progress = silent) -> list[Item]:
    """Return the items of the file or folder at `url`, in the order of files and rows.

    Bad rows go to `rejects` with file, row and reason. Raises ImportFailed when there are more than `max_bad_rows`, or
    when nothing there can be read.
    """
    paths, filesystem = files_at(url, JSON_LINES | ARROW | PARQUET)
    bad = Rejects(rejects, max_bad_rows=max_bad_rows)
    items = ItemRows()
    try:
        for number, (file, row, given) in enumerate(_rows(paths, filesystem), start=1):
            try:
                if isinstance(given, BadRow):
                    raise given
                items.add(given)
            except BadRow as error:
                bad.add(Path(file), row, str(error))
            if number % 10_000 == 0:
                progress("read", number, None)
        bad.finish()
    finally:
        bad.close()
    return items.items


def _rows(paths: list[str], filesystem: Any) -> Iterator[tuple[str, int, Any]]:
    """Yield (file, row number from 1, row or BadRow); files in order, rows in order."""
    import ray

    quiet_ray_data()
    context = ray.data.DataContext.get_current()
    before, context.execution_options.preserve_order = context.execution_options.preserve_order, True
    try:
        data = ray.data.from_items([{"path": p} for p in paths], override_num_blocks=min(len(paths), _MOST_BLOCKS))
        read = data.flat_map(_Reader(filesystem))
        for row in read.iter_rows():
            reason = row["reason"]
            yield row["file"], int(row["row"]), BadRow(reason) if reason else json.loads(row["json"])
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, ImportFailed) else None
        raise ImportFailed(str(cause or error)) from error
    finally:
        context.execution_options.preserve_order = before


class _Reader:
    """Reads one file in a worker; rows travel as JSON text, so that files of different columns mix."""

    def __init__(self, filesystem: Any) -> None:
        self._filesystem = filesystem

    def __call__(self, row: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        path = str(row["path"])
        name = PurePosixPath(path).name
        for number, given in self._read(path):
            reason = str(given) if isinstance(given, BadRow) else ""
            text = "" if reason else json.dumps(given, ensure_ascii=False, default=str)
            yield {"file": name, "row": number, "json": text, "reason": reason}

    def _read(self, path: str) -> Iterator[Row]:
        import pyarrow as pa

        try:
            with self._filesystem.open(path, "rb") as file:
                if suffix(path) in JSON_LINES:
                    # Some filesystems give files that read a byte at a time until a line ends, each byte a request.
                    with io.BufferedReader(file, _READ_BYTES) as lines:
                        yield from json_lines(lines)
                else:
                    batches = _parquet(file) if suffix(path) in PARQUET else _arrow(file)
                    yield from enumerate((row for batch in batches for row in _plain(batch)), start=1)
        except (OSError, pa.ArrowException) as error:
            raise ImportFailed(f"{PurePosixPath(path).name}: not a readable file ({why(error)})") from error


def _parquet(file: Any) -> Iterator[Any]:
    import pyarrow.parquet as pq

    yield from pq.ParquetFile(file).iter_batches(batch_size=8192)


def _arrow(file: Any) -> Iterator[Any]:
    import pyarrow as pa

    reader = pa.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _plain(batch: Any) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        yield {**row, "attributes": attributes_of(row["attributes"])} if "attributes" in row else row
