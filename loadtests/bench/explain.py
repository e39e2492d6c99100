"""Benchmark `explain`: are reasons true, varied and written by the model, and what does writing them cost.

Parts, each of which may run alone: `quality` (real users, cold cache, every sentence held against the raw event log by
a second checker), `levels` (the same records under the closed and the open grammar), `reading` (ease of reading beside
templates and free text; reference facts covered), `share` (open loop at a share of what the engine can write), `engine`
(grammar against free generation, our path against bare vLLM, first reason against the bare engine's first), `live` (a
running deployment: warm lists, and lists beside reasons). Raw samples are kept, so that `bench verify` recomputes every
figure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.config import Settings
from cluster.reason_records import UserRecord, latest_release, most_active, records_of
from cluster.workspace import Workspace
from loadtests.bench import explain_measures as _measures  # noqa: F401 - registered for `verify`
from loadtests.bench.harness import BenchContext
from loadtests.bench.second_checker import SecondChecker
from loadtests.bench.targets import Aim
from models.explain.cache import ReasonCache
from models.explain.engine_options import engine_options
from models.explain.evidence import Evidence
from models.explain.explainer import Reason, ReasonWriter
from models.explain.generator import Generator
from models.explain.reason_cache import TieredReasons
from models.explain.template import template_reason
from models.explain.vllm_generator import VllmGenerator

PARTS = ("quality", "levels", "reading", "share", "engine", "live")
_CALIBRATION = 40
K = 10


class Options(BaseModel):
    """Options of the benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parts: str = ",".join(PARTS)
    """Which parts to run; `live` needs `raycommend up` with the same state folder."""
    reasons: int = Field(2000, ge=K)
    """Reasons of the part `quality`, ten a user."""
    quality_s: float = Field(3600.0, gt=0)
    """No new list of the part `quality` begins after this long; the figures then stand for fewer reasons."""
    read_texts: int = Field(100, ge=K)
    """Records of the parts `levels` and `reading`, and as many rows of the reference explanations."""
    reference: Path = Path("../shared/data/xrec-explanations")
    """Folder of reference explanations (`*_tst.jsonl`); without it nothing is said about them."""
    share_lists: int = Field(20, ge=3)
    """Lists of ten that the part `share` sends."""
    load: float = Field(0.3, gt=0, le=1)
    """Offered load as a share of what the engine can write."""
    url: str = "http://127.0.0.1:8000"
    """Where the part `live` finds the deployment."""
    live_s: float = Field(60.0, gt=0, le=600)
    """Measured seconds per arm and round of lists beside reasons."""
    live_rounds: int = Field(3, ge=2, le=20)
    warm_users: int = Field(8, ge=1)
    plain_rps: float = Field(4.0, gt=0)
    """Plain lists per second that are measured beside the explained ones."""
    seed: int = 0

    @field_validator("parts")
    @classmethod
    def _known(cls, value: str) -> str:
        wrong = set(value.split(",")) - set(PARTS)
        if wrong:
            raise ValueError(f"no such part: {', '.join(sorted(wrong))}")
        return value


def bench(context: BenchContext) -> None:
    """Run the parts that were asked for."""
    options = context.options(Options)
    parts = options.parts.split(",")
    settings = Settings.model_validate(dict(context.settings))
    if set(parts) - {"live"}:
        _in_process(context, options, settings, parts)
    if "live" in parts:
        from loadtests.bench.explain_live import live

        live(context, options)


def _in_process(context: BenchContext, options: Options, settings: Settings, parts: Sequence[str]) -> None:
    """Run the parts that need an engine of their own."""
    bundle, dataset = latest_release(settings)
    ids = most_active(dataset.events, 1 << 30)
    order = np.random.default_rng(options.seed).permutation(len(ids))
    wanted = (
        (options.reasons if "quality" in parts else 0) // K
        + options.share_lists
        + _CALIBRATION // K
        + options.read_texts // K
        + 40
    )
    users = [ids[at] for at in order[:wanted]]
    context.tell(f"finding what may be said about the lists of {len(users)} users")
    records = list(records_of(settings, bundle, dataset.events, users, k=K))
    lists = [records[at : at + K] for at in range(0, len(records) - K + 1, K)]
    generator = VllmGenerator(Workspace(settings).generator_folder(), engine_options(settings.models.generator))
    with asyncio.Runner() as runner:
        runner.run(generator.start())
        try:
            capacity = None
            vectors = np.asarray(bundle.embeddings)
            checker = SecondChecker(dataset.items, dataset.events, embeddings=vectors, reviews=dataset.reviews)
            if "levels" in parts:
                from loadtests.bench.explain_levels import levels

                levels(context, runner, generator, checker, records[: options.read_texts])
            if "reading" in parts:
                from loadtests.bench.explain_text import reading, reference

                reading(context, runner, generator, checker, records[: options.read_texts])
                reference(context, runner, generator, options.reference, rows=options.read_texts, seed=options.seed)
            if "quality" in parts:
                quality = lists[: options.reasons // K]
                lists = lists[options.reasons // K :]
                capacity = _quality(context, runner, generator, checker, quality, most_s=options.quality_s)
            if "share" in parts:
                if capacity is None:
                    capacity, lists = _calibrated(runner, generator, lists[:4]), lists[4:]
                runner.run(_share(context, generator, lists[: options.share_lists], options, capacity))
                lists = lists[options.share_lists :]
            if "engine" in parts:
                from loadtests.bench.explain_engine import engine

                engine(context, runner, generator, settings, lists)
        finally:
            runner.run(generator.close())


def cold(generator: Generator) -> ReasonWriter:
    """Return a writer that remembers nothing."""
    return ReasonWriter(generator, cache=TieredReasons(generator.model, local=ReasonCache(size=0)))


def tasks_of(records: Sequence[UserRecord]) -> list[tuple[int, Evidence]]:
    """Return records as the writer takes them."""
    return [(slot, record.evidence) for slot, record in enumerate(records)]


async def _written(writer: ReasonWriter, records: Sequence[UserRecord], deadline_s: float = 600.0) -> list[Reason]:
    found = [reason async for reason in writer.write(tasks_of(records), deadline_s=deadline_s)]
    return sorted(found, key=lambda reason: reason.slot)


def _calibrated(runner: asyncio.Runner, generator: VllmGenerator, lists: Sequence[Sequence[UserRecord]]) -> float:
    started = time.perf_counter()
    for records in lists:
        runner.run(_written(cold(generator), records))
    return sum(map(len, lists)) / (time.perf_counter() - started)


def _quality(
    context: BenchContext,
    runner: asyncio.Runner,
    generator: VllmGenerator,
    checker: SecondChecker,
    lists: Sequence[Sequence[UserRecord]],
    *,
    most_s: float,
) -> float:
    """Write every list from cold, judge every sentence twice; returns reasons per second."""
    rows: list[dict[str, str]] = []
    tokens, started, writer = generator.generated_tokens, time.perf_counter(), cold(generator)
    for at, records in enumerate(lists):
        if time.perf_counter() - started > most_s:
            context.tell(f"stopped after {most_s:g} s")
            break
        for record, reason in zip(records, runner.run(_written(writer, records)), strict=True):
            rows.append(_row(record, reason, checker))
        if at % 10 == 9:
            context.tell(f"{len(rows)} reasons, {len(rows) / (time.perf_counter() - started):.2f}/s")
    taken_s = time.perf_counter() - started
    file = save_table(context, "reasons", rows)
    context.facts["reasons_per_s"] = round(len(rows) / taken_s, 3)
    context.facts["tokens_per_s"] = round((generator.generated_tokens - tokens) / taken_s, 2)
    context.facts["checker_refusals"] = dict(writer.stats.refusals)
    context.facts["second_checker"] = sorted({r["second"] for r in rows if r["source"] == "llm"})
    context.target("llm_first_pass_rate", "column_share", file, column="source", equals="llm", aim=Aim(at_least=0.97))
    second = {"column": "second", "equals": "true", "among": "llm"}
    context.target("independent_pass_rate", "column_share", file, aim=Aim(at_least=1.0), **second)
    context.target("distinct_masked", "distinct_share", file, column="masked", aim=Aim(at_least=0.5))
    context.target(
        "distinct_masked_over_templates",
        "distinct_share",
        file,
        column="masked",
        over="template",
        aim=Aim(at_least=0.0),
    )
    return len(rows) / taken_s


def _row(record: UserRecord, reason: Reason, checker: SecondChecker) -> dict[str, str]:
    wrong = checker.wrong(reason.text, user_id=record.user_id, item_id=record.item_id)
    return {
        "source": reason.source,
        "fallback": reason.fallback or "",
        "second": wrong or "true",
        "text": reason.text,
        "masked": masked(reason.text, record.evidence),
        "template": masked(template_reason(record.evidence), record.evidence),
    }


def masked(text: str, evidence: Evidence) -> str:
    """Return a sentence with titles, attributes and the year of its record replaced by one sign each."""
    titles = sorted({evidence.item, *(liked.title for liked in evidence.liked)} - {""}, key=len, reverse=True)
    for title in titles:
        text = text.replace(title, "T")
    labels = {a.text for a in (*evidence.attributes, *evidence.shared)}
    for label in sorted(labels | {x.lower() for x in labels}, key=len, reverse=True):
        text = text.replace(label, "A")
    return text.replace(str(evidence.year), "Y") if evidence.year else text


async def _share(
    context: BenchContext,
    generator: VllmGenerator,
    lists: Sequence[Sequence[UserRecord]],
    options: Options,
    capacity: float,
) -> None:
    """Send lists by a Poisson schedule, whether or not earlier ones are done."""
    rate = options.load * capacity / K
    gaps = np.random.default_rng(options.seed).exponential(1.0 / rate, len(lists))
    context.tell(f"open loop: {len(lists)} lists at {rate:.3f}/s, {options.load:.0%} of {capacity:.2f} reasons/s")
    writer, deadline_s = cold(generator), context.settings["serve"]["stream_reasons_deadline_ms"] / 1000.0
    started, running, at_s = time.perf_counter(), [], 0.0
    for gap, records in zip(gaps.tolist(), lists, strict=True):
        at_s += gap
        await asyncio.sleep(max(0.0, started + at_s - time.perf_counter()))
        running.append(asyncio.create_task(_written(writer, records, deadline_s)))
    found = [reason for reasons in await asyncio.gather(*running) for reason in reasons]
    rows = [{"source": reason.source, "fallback": reason.fallback or ""} for reason in found]
    file = save_table(context, "share", rows)
    context.facts["share_rate_lists_per_s"] = round(rate, 4)
    context.target("llm_share", "column_share", file, column="source", equals="llm", aim=Aim(at_least=0.9))


def save_table(context: BenchContext, label: str, rows: Sequence[dict[str, Any]]) -> str:
    """Keep rows as Parquet; returns the file name that targets refer to."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), context.folder / f"{label}.parquet")
    return f"{label}.parquet"
