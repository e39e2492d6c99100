"""Which release an answer names and whose titles it carries: kept by the client, held against what existed."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests import report
from loadtests.bench import registry
from loadtests.bench.harness import BenchContext, run_bench
from loadtests.bench.swap_marks import (
    MARK,
    answers_by_release,
    answers_of_unknown_releases,
    answers_that_mix_releases,
    marked_copy,
    new_stamp,
    state_releases,
)
from loadtests.bench.verify import differences
from loadtests.http1 import Exchange, Outcome
from loadtests.open_loop import OpenLoopOptions, open_loop
from loadtests.samples import RunResult, to_table
from loadtests.schedule import Arrivals
from loadtests.workload import Request
from models.artifacts import ArtifactStore
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.releases import KINDS, new_release

HOSTILE = 'He said "release":"r-lie" and \\"title":"x [copy z-9]" [copy z-9] end'


def body(release: str | None, *titles: str, spaced: bool = False) -> bytes:
    answer: dict[str, Any] = {"request_id": "q", "release": release} if release else {"request_id": "q"}
    answer |= {"degraded": False, "items": [{"item_id": HOSTILE, "title": title} for title in titles]}
    return json.dumps(answer, separators=None if spaced else (",", ":")).encode()


async def asked(
    answers: list[tuple[str, bytes]], *, kind: str = "recommend", status: str = "200 OK", **options: Any
) -> list[dict[str, Any]]:
    """Send one request per answer over real sockets; return what the samples say of each."""
    by_path = {f"/{at}": one for at, (_, one) in enumerate(answers)}

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = by_path[head.split(b" ")[1].decode()]
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(found)}\r\n\r\n".encode() + found)
                await writer.drain()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    requests = [Request(kind, path=path) for path in by_path]  # type: ignore[arg-type]
    seconds = len(requests) / 100
    run = OpenLoopOptions(
        url=url, rate_rps=100, duration_s=seconds, warmup_s=0, arrivals=Arrivals.CONSTANT, timeout_s=5, **options
    )
    try:
        result = await open_loop(run, requests)
    finally:
        server.close()
        await asyncio.sleep(0.01)
    assert result.table["outcome"].to_pylist() == [Outcome.ANSWERED] * len(requests)
    return result.table.select(["release", "title_marks"]).to_pylist()  # type: ignore[no-any-return]


ANSWERS = [
    ("one release", body("r-1", f"Heat{MARK}ab-1]", f"Über \\ mich{MARK}ab-1]"), "r-1", "ab-1"),
    ("two releases", body("r-1", f"Heat{MARK}ab-1]", f"Big{MARK}ab-2]"), "r-1", "ab-1 ab-2"),
    ("a title without a mark", body("r-2", f"Heat{MARK}ab-1]", "Big", spaced=True), "r-2", "- ab-1"),
    ("a title that looks like an answer", body("r-3", HOSTILE), "r-3", "-"),
    ("a mark on a mark", body("r-3", f"Heat{MARK}ab-1]{MARK}ab-2]"), "r-3", "ab-2"),
    ("no item", body("r-3"), "r-3", None),
    ("no release", body(None, HOSTILE), None, "-"),
]


async def test_the_client_keeps_the_release_and_the_marks_of_the_titles_whatever_titles_hold() -> None:
    found = await asked([(name, one) for name, one, *_ in ANSWERS], title_mark=MARK)
    assert found == [{"release": release, "title_marks": marks} for _, _, release, marks in ANSWERS]


async def test_without_a_mark_to_look_for_only_the_release_is_kept() -> None:
    assert await asked([("", ANSWERS[0][1])]) == [{"release": "r-1", "title_marks": None}]


async def test_of_a_stream_the_release_of_its_items_is_kept() -> None:
    stream = b"event: items\ndata: " + ANSWERS[0][1] + b"\n\nevent: done\ndata: {}\n\n"
    found = await asked([("", stream)], kind="stream", title_mark=MARK)
    assert found == [{"release": "r-1", "title_marks": "ab-1"}]


async def test_events_and_errors_name_no_release() -> None:
    nothing = [{"release": None, "title_marks": None}]
    assert await asked([("", ANSWERS[0][1])], status="503 Busy", title_mark=MARK) == nothing
    assert await asked([("", ANSWERS[0][1])], kind="event", status="202 Accepted", title_mark=MARK) == nothing


def run_of(*said: tuple[str, str], status: int = 200, warm: int = 0, kind: str = "recommend") -> RunResult:
    exchanges = []
    for at, (release, marks) in enumerate(said):
        one = Exchange(at, b"")
        one.outcome, one.status, one.woke_ns, one.done_ns = Outcome.ANSWERED, status, at + 1, at + 2
        one.release, one.title_marks = release.encode(), marks.encode()
        exchanges.append(one)
    table = to_table(exchanges, [kind] * len(said), range(len(said)), 1, warm)
    return RunResult(table, {"measured_s": 1.0, "lag_p99_bound_ms": 5.0})


MARKS = {"r-1": "ab-1", "r-2": "ab-2"}


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    return lambda *said, **more: run_of(*said, **more).save(tmp_path / "run.parquet")


def test_an_answer_of_a_release_that_never_was_and_one_of_none_are_counted(saved: Any) -> None:
    path = saved(("r-1", ""), ("r-9", ""), ("", ""), ("r-2", ""))
    found = answers_of_unknown_releases(path, known=["r-1", "r-2"])
    assert (found.value, found.n) == (2, 4)


@pytest.mark.parametrize(
    ("release", "marks", "mixed", "mixed_where_items_changed"),
    [
        ("r-1", "ab-1", False, False),
        ("r-1", "ab-2", True, True),
        ("r-1", "ab-1 ab-2", True, True),
        ("r-1", "- ab-1", True, False),
        ("r-1", "-", True, False),
        ("r-0", "-", False, False),
        ("r-0", "ab-1", True, True),
        ("r-0", "- ab-1", True, True),
    ],
)
def test_an_answer_mixes_when_a_title_lacks_the_mark_of_its_release(
    saved: Any, release: str, marks: str, mixed: bool, mixed_where_items_changed: bool
) -> None:
    path = saved((release, marks), ("r-2", "ab-2"), ("r-2", ""))
    found = answers_that_mix_releases(path, marks=MARKS, changed_items=False)
    assert (found.value, found.n) == (mixed, 2)
    assert answers_that_mix_releases(path, marks=MARKS, changed_items=True).value == mixed_where_items_changed


@pytest.mark.parametrize("of", [{"status": 503}, {"kind": "event"}, {"warm": 1}])
def test_only_measured_good_list_answers_count_and_none_at_all_is_no_pass(saved: Any, of: dict[str, Any]) -> None:
    path = saved(("r-9", "ab-1"), **of)
    assert answers_of_unknown_releases(path, known=[]).value is None
    assert answers_that_mix_releases(path, marks=MARKS, changed_items=False).value is None


def test_how_many_answers_each_release_gave_is_told() -> None:
    assert answers_by_release(run_of(("r-1", ""), ("r-2", ""), ("", ""), ("r-1", ""))) == {"": 1, "r-1": 2, "r-2": 1}


def test_samples_from_before_these_columns_load_and_say_so(tmp_path: Path) -> None:
    made = run_of(("r-1", "ab-1"))
    old = RunResult(made.table.drop_columns(["release", "title_marks"]), made.spec)
    again = RunResult.load(old.save(tmp_path / "old.parquet"))
    assert report.summarise(again, deadline_ms=50) == report.summarise(made, deadline_ms=50)
    with pytest.raises(ValueError, match="older than the column"):
        answers_of_unknown_releases(tmp_path / "old.parquet", known=[])


def swapped(context: BenchContext) -> None:
    raw = context.save_run("with-swaps", run_of(*[("r-1", "ab-1"), ("r-2", "ab-2")] * 20))
    state_releases(context, raw, known=["r-2", "r-1"], marks=MARKS, changed_items=False)


def test_verify_recomputes_both_counts_from_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BENCHES, "swapped", registry.Bench("swapped", f"{__name__}:swapped", "a test"))
    assert run_bench("swapped", state=tmp_path, json=True, options={}) == 0
    (folder,) = (tmp_path / "bench").iterdir()
    assert differences(folder) == []
    run_of(("r-1", "ab-2"), ("r-9", "ab-1")).save(folder / "with-swaps.parquet")
    found = "\n".join(differences(folder))
    assert "answers_of_unknown_releases: value is 0.0, recomputed 1.0" in found
    assert "answers_that_mix_releases: value is 0.0, recomputed 2.0" in found


def test_a_copy_differs_in_its_titles_and_names_and_no_later_build_takes_it_for_its_own(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    items = [
        Item("a", "Heat", "cops", {"genres": ("Crime",)}, {"year": 1995.0}, {"image": "/x.png"}),
        Item("b", "", "", {}, {}),
    ]
    folder = tmp_path / "made"
    folder.mkdir()
    write_catalog(items, folder / CATALOG_FILE)
    (folder / "live.jsonl").write_text("{}\n")
    refs = {kind: store.put(kind, folder, {"inputs_key": "k", "inputs": {"encoder": "e"}}) for kind in KINDS}
    release = new_release(refs, item_log_seq=7, dataset="d")
    stamps = [new_stamp(0), new_stamp(1)]
    copies = [marked_copy(store, release, stamp) for stamp in stamps]
    assert len({release.release_id, *(copy.release_id for copy in copies)}) == 3
    for stamp, copy in zip(stamps, copies, strict=True):
        assert (copy.item_log_seq, copy.notes["dataset"], set(copy.artifacts)) == (7, "d", set(KINDS))
        for kind, ref in copy.artifacts.items():
            artifact = store.get(ref)
            assert artifact.meta == {"inputs": {"encoder": "e"}, "copy": stamp} and ref != refs[kind]
            same = {file.name for file in artifact.path.iterdir() if same_bytes(file, folder / file.name)}
            assert same == ({"live.jsonl"} if kind == "catalog" else {"live.jsonl", CATALOG_FILE})
        catalog = ItemCatalog(store.get(copy.artifacts["catalog"]).path)
        assert [catalog.title(row) for row in range(2)] == [f"Heat{MARK}{stamp}]", f"{MARK}{stamp}]"]
        rest = [(i.item_id, i.text, i.labels, i.numbers, i.media) for i in map(catalog.item, range(2))]
        assert rest == [(i.item_id, i.text, i.labels, i.numbers, i.media) for i in items]
        assert np.array_equal(catalog.rows(["b", "a"]), [1, 0])


def same_bytes(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()
