"""Served records reach the disk, and what cannot be kept is counted, never waited for."""

import asyncio
from pathlib import Path

import pyarrow.parquet as pq

from serve.records import ServedRecord, ServedRecords


def record(number: int) -> ServedRecord:
    return ServedRecord(f"d{number}", "u1", "r-1", 0, ["i1"], [1], [0.5], [])


def written(folder: Path) -> list[str]:
    return sorted(d for f in folder.glob("day=*/*.parquet") for d in pq.read_table(f)["decision_id"].to_pylist())


async def test_what_is_queued_is_written_when_the_replica_stops(tmp_path) -> None:
    records = ServedRecords(tmp_path, dropped=lambda: None)
    records.start()
    records.put(record(1))
    records.put(record(2))
    await records.stop()
    assert written(tmp_path) == ["d1", "d2"]


async def test_a_disk_that_refuses_costs_its_records_and_draining_goes_on(tmp_path) -> None:
    folder, lost = tmp_path / "records", asyncio.Event()
    folder.write_text("a file where the folder should be")
    records = ServedRecords(folder, dropped=lost.set, flush_s=0.01)
    records.start()
    records.put(record(1))
    async with asyncio.timeout(5):
        await lost.wait()
    folder.unlink()
    records.put(record(2))
    await records.stop()  # would raise, had draining ended with the first failure
    assert written(folder) == ["d2"]
