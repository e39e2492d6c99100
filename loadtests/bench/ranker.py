"""Benchmark `ranker`: the compressed ranker in process, and the text ranker's engines beside the library of its models.

`compressed`: the latest release's own ranker on its users' last requests, alone, on every core, and by 16 callers at
once beside a queue that is simulated with the service times of the same round. `text`: the very same pairs, weights,
token limit and threads through `sentence_transformers.CrossEncoder.predict`, kept scores off. Called by the harness.
The texts are in `ranker_text`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from cluster.config import Settings
from cluster.workspace import Workspace
from loadtests import stats
from loadtests.bench.harness import BenchContext
from loadtests.bench.measures import measure
from loadtests.bench.ranker_text import LIST, Asked, Judged, compare, judge
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError
from loadtests.stats import Estimate
from models.behaviour.replay import histories
from models.bundle import ReleaseBundle, load_bundle
from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import ItemCatalog
from models.rankers.compressed import CompressedRanker
from models.retrieval.query import RetrievalQuery
from models.threads import linear_algebra_threads
from pipelines.dataset import Dataset
from serve.context import StageCall
from serve.ranking import ModelRanker

_PATIENCE_MS = 60_000.0


class Options(BaseModel):
    """Options of the benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests: int = Field(300, ge=20, le=5000)
    """Requests of 100 candidates per round, one user each."""
    callers: int = Field(16, ge=1, le=256)
    """Concurrent callers of the queue comparison; no more than `requests`, or the queue would never be full."""
    pairs: int = Field(96, ge=16, le=2000)
    """Text pairs per round and engine."""
    compressed: bool = True
    """Whether to measure the release's own ranker."""
    text: bool = True
    """Whether to measure the text ranker too."""
    model: str | None = None
    """Folder of a trained cross-encoder with one label; with it, what `bf16` and `int8` lose in NDCG is measured."""
    lists: int = Field(200, ge=20, le=5000)
    """Lists that hold the item which came next, for that loss; the release's users and its retrieval make them."""
    student_layers: int = Field(3, ge=1)
    """Layers of the student, a model of the same width that `train --kind text --student` would make."""
    texts: str | None = None
    """Imported data set whose users and items make the text pairs; none takes the release's."""

    @field_validator("callers")
    @classmethod
    def _fill_the_queue(cls, callers: int, info: ValidationInfo) -> int:
        if callers > (requests := info.data.get("requests", callers)):
            raise ValueError(f"{callers} callers need at least as many requests, not {requests}")
        return callers


@measure
def queue_ratio(path: Path, *, calls: str, service: str, callers: int) -> Estimate:
    """Geometric mean over rounds of p99 of `calls` over p99 of a simulated first-come queue of `callers`.

    A caller asks again as soon as it is answered and one server works, so a call takes the service times of itself
    and of the `callers` - 1 before it; those are the `service` samples of the same round. Raises ValueError where a
    round has fewer of them than `callers`.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rounds, values = table["round"].to_numpy(), table["value"].to_numpy()
    arms = table["arm"].to_numpy(zero_copy_only=False).astype(str)
    measured, simulated = [], []
    for number in np.unique(rounds):
        times = values[(rounds == number) & (arms == service)]
        if len(times) < callers:  # numpy would exchange the two without a word
            raise ValueError(f"{len(times)} service times in round {number} make no queue of {callers} callers")
        waits = np.convolve(times, np.ones(callers), mode="valid")
        simulated.append(float(np.quantile(waits, 0.99)))
        measured.append(float(np.quantile(values[(rounds == number) & (arms == calls)], 0.99)))
    return stats.geometric_mean(stats.paired_ratios(measured, simulated))


def bench(context: BenchContext) -> None:
    """Run the benchmark `ranker`."""
    options = context.options(Options)
    settings = Settings.model_validate(dict(context.settings))
    workspace = Workspace(settings)
    release = workspace.releases().latest()
    if release is None:
        raise LoadError("bench ranker measures the latest release: run `raycommend build` first")
    bundle = load_bundle(workspace.artifacts(), release, settings=settings.models.retrieval)
    dataset = workspace.dataset(str(release.notes["dataset"]))
    asked = _requests(bundle, dataset.events, options.requests)
    context.facts |= {"dataset": dataset.name, "items": len(bundle.catalog), "requests": len(asked)}
    if options.compressed:
        with linear_algebra_threads(1):
            _compressed(context, options, bundle, asked)
    if options.text:
        with linear_algebra_threads(os.cpu_count() or 1):
            catalog, some = bundle.catalog, [(query, found.take(np.arange(LIST))) for query, found in asked]
            if options.texts is not None:
                catalog, some = _strangers(workspace.dataset(options.texts), options)
            context.facts["texts"] = options.texts or dataset.name
            few = some[: max(1, options.pairs // LIST)]
            if options.model is None:
                compare(context, workspace.encoder_folder(), catalog, few, layers=options.student_layers)
            else:
                model = Path(options.model)
                compare(context, model, catalog, few, trained=True, layers=options.student_layers)
                judge(context, model, bundle.catalog, _taken(bundle, dataset.events, options.lists))


def _requests(bundle: ReleaseBundle, events: Any, count: int) -> Asked:
    """Return each user's last event as a request with a hundred retrieved candidates."""
    asked: Asked = []
    for history in histories(events):
        if len(asked) == count:
            break
        now = int(history.timestamps_ms[-1])
        query = RetrievalQuery(n=100, now_ms=now, user=history.before(len(history) - 1))
        found = bundle.engine.retrieve(query)
        if len(found) == 100:
            asked.append((query, found))
    if not asked:
        raise LoadError("no user of this data set has a hundred candidates left")
    return asked


def _taken(bundle: ReleaseBundle, events: Any, count: int) -> Judged:
    """Return users' last events as requests whose best candidates hold what came next, and its position there."""
    judged: Judged = []
    for history in histories(events):
        if len(judged) == count:
            break
        query = RetrievalQuery(n=100, now_ms=int(history.timestamps_ms[-1]), user=history.before(len(history) - 1))
        found = bundle.engine.retrieve(query)
        best = found.take(np.arange(min(LIST, len(found))))
        at = np.flatnonzero(best.rows == bundle.catalog.rows([str(history.item_ids[-1])])[0])
        if len(at):
            judged.append((query, best, int(at[0])))
    if not judged:
        raise LoadError("no list of this release holds the item that came next: nothing to judge an engine by")
    return judged


def _strangers(dataset: Dataset, options: Options) -> tuple[ItemCatalog, Asked]:
    """Return the catalog of another data set and its users' last requests with candidates at random."""
    catalog = ItemCatalog.of(dataset.items)
    rng = np.random.default_rng(0)
    asked: Asked = []
    for history in histories(dataset.events):
        if len(asked) == options.requests:
            break
        query = RetrievalQuery(n=LIST, now_ms=int(history.timestamps_ms[-1]), user=history.before(len(history) - 1))
        rows = rng.choice(len(catalog), min(LIST, len(catalog)), replace=False).astype(np.int32)
        width, n = len(SCORED_SOURCES), len(rows)
        nothing = np.zeros((n, width), np.float32), np.zeros(n, np.float32)
        asked.append((query, Candidates(rows, np.zeros(n, np.uint16), *nothing)))
    return catalog, asked


def _compressed(context: BenchContext, options: Options, bundle: ReleaseBundle, asked: Asked) -> None:
    ranker = bundle.ranker
    if not isinstance(ranker, CompressedRanker):
        raise LoadError("the latest release has no compressed ranker switched on: build one with train_ranker")
    if options.callers > len(asked):
        raise LoadError(f"callers={options.callers} need at least as many requests; this data set gives {len(asked)}")

    def service() -> list[float]:
        return [_ms(lambda q=q, c=c: ranker.score(q, c)) for q, c in asked]  # type: ignore[misc]

    def calls() -> list[float]:
        return asyncio.run(_concurrently(bundle, asked, options.callers))

    raw = context.interleave("compressed", {"service": service, "calls": calls})
    context.target("compressed_p50_ms", "arm", raw, name="service")
    context.target("compressed_p99_ms", "arm", raw, name="service", statistic="p99", aim=Aim(at_most=3.0))
    queue = {"calls": "calls", "service": "service", "callers": options.callers}
    context.target("p99_over_queue", "queue_ratio", raw, aim=Aim(at_most=1.5), **queue)
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:

        def rate() -> float:
            began = time.perf_counter()
            list(pool.map(lambda one: ranker.score(*one), asked))
            return len(asked) / (time.perf_counter() - began)

        raw = context.interleave("compressed-rate", {"rate": rate})
    context.target("compressed_rps", "arm", raw, name="rate", aim=Aim(at_least=300.0))


async def _concurrently(bundle: ReleaseBundle, asked: Asked, callers: int) -> list[float]:
    """Return the ms of every call of `callers` that ask again as soon as they are answered."""
    times: list[float] = []
    waiting = iter(asked)
    call = StageCall(tenant="main", release_id="", remaining_ms=_PATIENCE_MS)
    with ThreadPoolExecutor(1) as pool:
        ranker = ModelRanker(lambda tenant, release: bundle, pool)

        async def caller() -> None:
            for query, candidates in waiting:
                began = time.perf_counter()
                await ranker.score(call, query, candidates)
                times.append((time.perf_counter() - began) * 1e3)

        await asyncio.gather(*(caller() for _ in range(callers)))
    return times


def _ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3
