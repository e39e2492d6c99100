"""Raw samples of one run as an Arrow table: one row per arrival, nothing summarised, nothing left out.

Columns: `index`, `kind`, `measured` (false in the warm-up), `outcome`, `status`, `bytes`, `degraded`, `retried`, the
times `intended_ns`, `woke_ns` (the client took the arrival up), `sent_ns`, `first_byte_ns`, `done_ns`, `items_ns`,
`stream_done_ns` in ns since the start of the run (-1: never happened), `reasons_ns` (a list), `release` (that a good
answer names) and `title_marks` (the marks of its titles, once each, where the run asked for them), both null for events
and where there is none, and one `stage_<name>_ms` column per entry of the Server-Timing header (NaN: not given). Files
from before 2026-12 lack `release` and `title_marks`.
Written by the open-loop client, read by reports and benchmarks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtests.http1 import Exchange

if TYPE_CHECKING:
    import pyarrow as pa

NEVER = -1
MAX_STAGES = 32
_STAGE = re.compile(rb"\s*([A-Za-z0-9_.-]{1,40})\s*;[^,]*?\bdur=([0-9.]+)")


@dataclass(frozen=True)
class RunResult:
    """What one open-loop run left: the raw table and the facts needed to read it."""

    table: pa.Table
    spec: Mapping[str, Any]
    """The options of the run without secrets, `measured_s`, and `kinds`."""

    def save(self, path: Path) -> Path:
        """Write a Parquet file that carries the spec in its metadata; returns the path."""
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table.replace_schema_metadata({"spec": json.dumps(dict(self.spec))}), path)
        return path

    @classmethod
    def load(cls, path: Path) -> RunResult:
        """Read what `save` wrote. Raises ValueError when the file carries no spec."""
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        spec = (table.schema.metadata or {}).get(b"spec")
        if spec is None:
            raise ValueError(f"{path} holds no raw samples of the open-loop client")
        return cls(table, json.loads(spec))


def parse_server_timing(header: bytes) -> dict[str, float]:
    """Return stage → ms of a Server-Timing header; entries without a duration are left out."""
    found = {}
    for name, duration in _STAGE.findall(header):
        try:
            found[name.decode()] = float(duration)
        except ValueError:
            continue
    return found


def to_table(
    exchanges: Sequence[Exchange], kinds: Sequence[str], intended: Sequence[int], start: int, warm: int
) -> pa.Table:
    """Build the table; `start` is the monotonic ns of the run's zero, `warm` the number of warm-up rows."""
    import pyarrow as pa

    def since(values: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        moments = np.asarray(values, dtype=np.int64)
        return np.where(moments > 0, moments - start, NEVER)

    n = len(exchanges)
    columns: dict[str, Any] = {
        "index": np.arange(n, dtype=np.int32),
        "kind": pa.array(kinds).dictionary_encode(),
        "measured": np.arange(n) >= warm,
        "outcome": np.array([e.outcome for e in exchanges], dtype=np.int8),
        "status": np.array([e.status for e in exchanges], dtype=np.int16),
        "bytes": np.array([e.bytes_in for e in exchanges], dtype=np.int64),
        "degraded": np.array([e.degraded or _cut_short(e) for e in exchanges], dtype=bool),
        "retried": np.array([e.retried for e in exchanges], dtype=bool),
        "intended_ns": np.asarray(intended, dtype=np.int64),
        "items_ns": since([_first(e, b"items") for e in exchanges]),
        "stream_done_ns": since([_first(e, b"done") for e in exchanges]),
        "reasons_ns": pa.array(
            [[at - start for name, at in e.events if name == b"reason"] for e in exchanges], type=pa.list_(pa.int64())
        ),
        "release": _words([e.release for e in exchanges], kinds),
        "title_marks": _words([e.title_marks for e in exchanges], kinds),
    }
    for name in ("woke_ns", "sent_ns", "first_byte_ns", "done_ns"):
        columns[name] = since([getattr(e, name) for e in exchanges])
    return pa.table(columns | _stages(exchanges))


def _words(found: Sequence[bytes], kinds: Sequence[str]) -> pa.Array:
    """Return what list calls were answered, null where that is nothing; Parquet keeps each text once."""
    import pyarrow as pa

    words = [w.decode("latin-1") if w and kind != "event" else None for w, kind in zip(found, kinds, strict=True)]
    # Not as a dictionary in memory: a null of one would be read as its last word by numpy.
    return pa.array(words, pa.string())


def _cut_short(exchange: Exchange) -> bool:
    """A stream that gave its items and never `done` is a degraded answer by the contract."""
    return exchange.sse and bool(_first(exchange, b"items")) and not _first(exchange, b"done")


def _first(exchange: Exchange, event: bytes) -> int:
    return next((at for name, at in exchange.events if name == event), 0)


def _stages(exchanges: Sequence[Exchange]) -> dict[str, Any]:
    rows = [parse_server_timing(e.server_timing) if e.server_timing else {} for e in exchanges]
    names = sorted({name for row in rows for name in row})[:MAX_STAGES]
    return {f"stage_{name}_ms": np.array([row.get(name, np.nan) for row in rows]) for name in names}
