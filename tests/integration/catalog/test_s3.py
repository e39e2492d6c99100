"""Catalogs in S3, through a server that speaks the protocol: the same items as from a disk, and errors in one line."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.embedding.places import DENIED, NO_ANSWER, files_at
from pipelines.embedding.source import ARROW, JSON_LINES, PARQUET, _Reader
from pipelines.importers.rejects import ImportFailed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

KINDS = JSON_LINES | ARROW | PARQUET
ROWS = [
    {
        "id": f"i{n}",
        "title": f"Film {n} – Ünder",
        "text": "x" * 50,
        "attributes": {"genre": ["a"], "year": 1990 + n % 30},
    }
    for n in range(3000)
]
READ = """
    import json, sys
    from pathlib import Path
    from cluster.config import load_settings
    from cluster.ray_job import job_ray
    from pipelines.embedding.source import read_items
    from pipelines.importers.rejects import ImportFailed

    folder = Path(sys.argv[1])
    found = {}
    with job_ray(load_settings("local", [f"cluster.state={folder / 'state'}"], environ=None)):
        for url in json.loads((folder / "urls.json").read_text()):
            rejects = folder / "rejects.jsonl"
            try:
                said = [repr(i) for i in read_items(url, rejects=rejects, max_bad_rows=2)]
            except ImportFailed as error:
                said = str(error)
            found[url] = [said, rejects.read_text() if rejects.exists() else ""]
    print(json.dumps(found))
"""


def _catalog() -> dict[str, bytes]:
    table = pa.Table.from_pylist(ROWS)
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(table, parquet, row_group_size=500)
    with pa.ipc.new_file(arrow, table.schema) as writer:
        writer.write_table(table, max_chunksize=700)
    lines = "\n".join(json.dumps(row) for row in ROWS).encode()
    bad = json.dumps({"id": "bad id", "title": "x"}).encode()
    return {
        "one.parquet": parquet.getvalue(),
        "one.arrow": arrow.getvalue(),
        "one.jsonl": lines,
        "mixed/1.jsonl": lines[: lines.index(b"\n")] + b"\nnot json\n" + bad,
        "mixed/deeper & odd+name/2.parquet": _parquet(ROWS[1:4]),
        "mixed/notes.txt": b"not a catalog",
        "broken/1.parquet": b"PAR1 and nothing else",
        **{f"many/{n // 500}/{n:04d}.jsonl": json.dumps(ROWS[n]).encode() for n in range(2345)},
    }


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def _in(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    # Nobody's profile and no machine's role decide what these tests see.
    nobody = {
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in {**nobody, **environment}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.heavy
def test_a_catalog_in_s3_gives_the_same_items_and_rejects_as_on_a_disk(s3, tmp_path, monkeypatch, run_driver) -> None:
    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = _catalog()
    for name, content in s3.buckets["shop"].items():
        file = tmp_path / "disk" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    places = ["one.parquet", "one.arrow", "one.jsonl", "mixed", "many/", "broken"]
    urls = {place: (str(tmp_path / "disk" / place), f"s3://shop/{place}") for place in places}
    (tmp_path / "urls.json").write_text(json.dumps([u for both in urls.values() for u in both]))
    found = run_driver(READ, timeout_s=200)
    for place, (disk, remote) in urls.items():
        assert found[remote] == found[disk], place
    assert [len(found[f"s3://shop/{p}"][0]) for p in places[:5]] == [3000, 3000, 3000, 4, 2345]
    assert found["s3://shop/one.parquet"][0] == found["s3://shop/one.jsonl"][0] == found["s3://shop/one.arrow"][0]
    assert "i2344" in found["s3://shop/many/"][0][-1]
    rejected = [json.loads(line) for line in found["s3://shop/mixed"][1].splitlines()]
    assert [(r["file"], r["row"]) for r in rejected] == [("1.jsonl", 2), ("1.jsonl", 3)]
    assert "1.parquet: not a readable file" in found["s3://shop/broken"][0]


def test_a_listing_goes_on_after_its_first_page(s3, monkeypatch) -> None:
    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = {f"flat/{n:04d}.jsonl": b"{}" for n in range(2345)}
    paths, _ = files_at("s3://shop/flat", KINDS)
    assert paths == [f"shop/flat/{n:04d}.jsonl" for n in range(2345)]
    assert sum("continuation-token" in asked for asked in s3.asked) == 2
    assert len(s3.asked) < 20  # and no object was asked for by itself


def test_a_whole_bucket_is_a_catalog_too(s3, monkeypatch) -> None:
    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = {"b.jsonl": b"{}", "a/c.jsonl": b"{}"}
    assert files_at("s3://shop", KINDS)[0] == files_at("s3://shop/", KINDS)[0] == ["shop/a/c.jsonl", "shop/b.jsonl"]


@pytest.mark.parametrize("name", ["one.jsonl", "one.parquet", "one.arrow"])
def test_a_file_is_read_in_large_pieces_and_parquet_in_the_ranges_it_names(s3, monkeypatch, name: str) -> None:
    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = {name: _catalog()[name]}
    paths, filesystem = files_at(f"s3://shop/{name}", KINDS)
    before = len(s3.asked)
    rows = list(_Reader(filesystem)({"path": paths[0]}))
    assert [json.loads(r["json"])["id"] for r in rows] == [row["id"] for row in ROWS]
    assert len(s3.asked) - before < 80
    assert s3.ranges


def test_what_is_wrong_is_said_in_one_line_without_a_secret(s3, monkeypatch) -> None:
    s3.buckets["shop"] = {"items/a.jsonl": b"{}"}
    right = s3.environment
    nobody = {"AWS_ENDPOINT_URL": s3.url}
    cases = [
        (right, "s3://shopp/items", "s3://shopp/items: there is no bucket shopp"),
        (right, "s3://shop/itmes", "s3://shop/itmes: no .parquet, .jsonl or .arrow file there"),
        (right, "s3://", "an S3 URL is s3://BUCKET/FOLDER"),
        (right, "s3://AKIDOTHER:topsecret@shop/items", "an S3 URL is s3://BUCKET/FOLDER"),
        (nobody, "s3://shop/items", DENIED),
        ({**right, "AWS_SECRET_ACCESS_KEY": "topsecret"}, "s3://shop/items", DENIED),
        ({**right, "AWS_ACCESS_KEY_ID": "AKIDOTHER"}, "s3://shop/items", DENIED),
        ({**right, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "s3://shop/items", NO_ANSWER),
        (right, "ftp://user:topsecret@127.0.0.1:9/items?sig=topsecret", "ftp://127.0.0.1:9/items: cannot be opened"),
    ]
    for environment, url, said in cases:
        _in(monkeypatch, environment)
        with pytest.raises(ImportFailed) as failed:
            files_at(url, KINDS)
        message = str(failed.value)
        assert said in message
        assert "\n" not in message
        assert not [s for s in ("topsecret", environment.get("AWS_SECRET_ACCESS_KEY"), "AKID") if s and s in message]


def test_what_travels_to_workers_holds_no_credentials(s3, monkeypatch) -> None:
    import cloudpickle

    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = {"items/a.jsonl": b"{}"}
    sent = cloudpickle.dumps(_Reader(files_at("s3://shop/items", KINDS)[1]))
    assert s3.environment["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    assert s3.environment["AWS_ACCESS_KEY_ID"].encode() not in sent


def test_an_object_that_went_after_the_listing_is_named(s3, monkeypatch) -> None:
    _in(monkeypatch, s3.environment)
    s3.buckets["shop"] = {"items/a.jsonl": b"{}"}
    paths, filesystem = files_at("s3://shop/items", KINDS)
    del s3.buckets["shop"]
    with pytest.raises(ImportFailed, match=r"a\.jsonl: not a readable file"):
        list(_Reader(filesystem)({"path": paths[0]}))
