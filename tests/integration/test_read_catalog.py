"""Catalogs of every kind read by Ray Data: the same items, and bad rows by file and number."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

READER = """
    import json, sys
    from pathlib import Path
    from cluster.config import load_settings
    from cluster.ray_job import job_ray
    from pipelines.embedding.source import read_items
    from pipelines.importers.rejects import ImportFailed

    folder = Path(sys.argv[1])
    settings = load_settings("local", [f"cluster.state={folder / 'state'}"], environ=None)
    with job_ray(settings):
        for url, bad in json.loads(sys.argv[2]):
            try:
                items = read_items(url, rejects=folder / "rejects.jsonl", max_bad_rows=bad)
                said = [[i.item_id, i.title, {n: list(v) for n, v in i.labels.items()}, dict(i.numbers)] for i in items]
            except ImportFailed as error:
                said = str(error)
            rejects = folder / "rejects.jsonl"
            lines = rejects.read_text().splitlines() if rejects.exists() else []
            print(json.dumps({"said": said, "rejects": [json.loads(line) for line in lines]}), flush=True)
"""
ROWS = [
    {"id": "a", "title": "Alpha", "text": "one", "attributes": {"genre": ["x", "y"], "year": 1999}},
    {"id": "b", "title": "Beta", "text": None, "attributes": {"genre": ["z"], "year": None}},
]
ITEMS = [["a", "Alpha", {"genre": ["x", "y"]}, {"year": 1999.0}], ["b", "Beta", {"genre": ["z"]}, {}]]


def test_every_kind_and_place_gives_the_same_items_and_names_its_bad_rows(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "items.parquet")
    with pa.OSFile(str(tmp_path / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.jsonl").write_text(json.dumps(ROWS[0]) + "\nnot json\n" + json.dumps({"id": "a a", "title": "x"}))
    pq.write_table(table.slice(0, 2), parts / "2.parquet")
    (parts / "notes.txt").write_text("not a catalog")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    wanted = [
        [str(tmp_path / "items.parquet"), 0],
        [f"file://{tmp_path / 'items.arrow'}", 0],
        [str(tmp_path / "items.jsonl"), 0],
        [str(parts), 3],
        [str(parts), 2],
        [str(tmp_path / "broken.parquet"), 0],
        [str(tmp_path / "nothing"), 0],
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(READER), str(tmp_path), json.dumps(wanted)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"said"')]
    assert [a["said"] for a in answers[:3]] == [ITEMS] * 3
    assert answers[3]["said"] == ITEMS
    found = [(r["file"], r["row"], r["reason"].partition(":")[0]) for r in answers[3]["rejects"]]
    assert found == [("1.jsonl", 2, "broken JSON"), ("1.jsonl", 3, "id"), ("2.parquet", 1, "duplicate item id")]
    assert "3 bad rows, 2 allowed" in answers[4]["said"]
    assert "broken.parquet: not a readable file" in answers[5]["said"]
    assert "no .parquet, .jsonl or .arrow file there" in answers[6]["said"]
