"""Copies of a release that can be told apart, and what the answers of a run say of the releases they came from.

Every title of a copy ends with a mark of the copy. The ingress takes an answer's titles from the catalog that it holds
under the name of the release it pinned, and the answer names that release: an answer whose titles carry another mark
was written from two releases. That is all the marks show. Retriever and ranker send rows and scores, which are the same
in every copy; that they used the release they were asked for is not seen here. Called by the benchmark `swap`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from loadtests import report
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import measure
from loadtests.bench.targets import Aim
from loadtests.open_loop import UNMARKED
from loadtests.samples import RunResult
from loadtests.stats import Estimate
from models.artifacts import ArtifactStore
from models.catalog import CATALOG_FILE
from models.releases import Release, new_release

MARK = " [copy "
"""How the mark at the end of a title begins; the copy's stamp and `]` follow."""
Words = list[str | None]


@measure
def answers_of_unknown_releases(path: Path, *, known: Collection[str]) -> Estimate:
    """Good answers of list calls that name a release which is not `known`, or none; no value without an answer."""
    named, _ = _said(RunResult.load(path))
    return _count([release not in known for release in named])


@measure
def answers_that_mix_releases(path: Path, *, marks: Mapping[str, str], changed_items: bool) -> Estimate:
    """Good answers of list calls with a title that lacks the mark of the release that the answer names.

    Releases that `marks` does not name have titles without a mark. Where `changed_items` says that items changed since
    the release was built, a title without one says nothing, because those items have the title of the item log. Answers
    without titles do not count; no value where that is all of them.
    """
    mixed = []
    for release, found in zip(*_said(RunResult.load(path)), strict=True):
        if found is not None:
            own = {marks.get(release or "", UNMARKED)}
            mixed.append(not set(found.split()) <= (own | {UNMARKED} if changed_items else own))
    return _count(mixed)


def state_releases(
    context: BenchContext, raw: str, *, known: Collection[str], marks: Mapping[str, str], changed_items: bool
) -> None:
    """State what the answers of the run `raw` say of releases: `known` existed, `marks` are those of the copies."""
    nowhere = Aim(at_most=0)
    unknown, mixed = "answers_of_unknown_releases", "answers_that_mix_releases"
    context.target(unknown, unknown, raw, aim=nowhere, known=sorted(known))
    context.target(mixed, mixed, raw, aim=nowhere, marks=dict(marks), changed_items=changed_items)


def answers_by_release(run: RunResult) -> dict[str, int]:
    """Return how many good answers of list calls named each release; "" for none."""
    names, counts = np.unique([release or "" for release in _said(run)[0]], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def marked_copy(artifacts: ArtifactStore, release: Release, stamp: str) -> Release:
    """Return a release of copies of the artifacts of `release`, none of them loaded before, with marked titles.

    A text ranker reads the mark as a part of every item's text; the compressed one reads vectors and does not.
    """
    refs = {kind: _copy(artifacts, ref, stamp) for kind, ref in release.artifacts.items()}
    return new_release(refs, item_log_seq=release.item_log_seq, **release.notes)


def new_stamp(number: int) -> str:
    """Return a stamp that no copy had before."""
    return f"{time.time_ns():x}-{number}"


def _copy(artifacts: ArtifactStore, ref: str, stamp: str) -> str:
    artifact = artifacts.get(ref)
    kind = ref.split("/")[0]
    # Without the key of its inputs, or a later build would take the copy for the artifact it makes of them.
    meta = {name: value for name, value in artifact.meta.items() if name != "inputs_key"} | {"copy": stamp}
    if kind != "catalog":
        return artifacts.put(kind, artifact.path, meta)
    with tempfile.TemporaryDirectory() as folder:
        marked = Path(folder) / kind
        shutil.copytree(artifact.path, marked)
        _mark_titles(marked / CATALOG_FILE, f"{MARK}{stamp}]")
        return artifacts.put(kind, marked, meta)


def _mark_titles(file: Path, mark: str) -> None:
    import pyarrow as pa

    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    titles = pa.array([(title or "") + mark for title in table["title"].to_pylist()], pa.string())
    table = table.set_column(table.column_names.index("title"), "title", titles).combine_chunks()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _said(run: RunResult) -> tuple[Words, Words]:
    """Return the release and the marks of the titles of every good answer of a list call."""
    columns = report.measured(run.table, report.LIST_KINDS)
    if "release" not in columns:
        raise ValueError("these samples are older than the column that tells which release an answer names")
    good = np.isfinite(report.latency_ms(columns))
    return columns["release"][good].tolist(), columns["title_marks"][good].tolist()


def _count(found: list[bool]) -> Estimate:
    return Estimate(float(sum(found)) if found else None, len(found), (None, None))
