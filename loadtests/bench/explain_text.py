"""The parts of the benchmark `explain` that read texts: ease of reading, and facts of references covered.

Both set three writers side by side for the same records: the reason (model under its grammar), the template, and the
same model without a grammar. Reported, never tuned: no target here has an aim.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cluster.reason_records import UserRecord
from loadtests.bench.explain import cold, save_table, tasks_of
from loadtests.bench.harness import BenchContext
from loadtests.bench.readability import content, stem
from loadtests.bench.second_checker import SecondChecker
from models.explain.clean import quotable_text
from models.explain.evidence import Evidence
from models.explain.generator import ReasonRequest
from models.explain.positives import Attribute
from models.explain.template import template_reason
from models.explain.vllm_generator import VllmGenerator

WRITERS = ("reason", "template", "free")
_FREE_TOKENS = 40
_ASPECTS = 3


def reading(
    context: BenchContext,
    runner: asyncio.Runner,
    generator: VllmGenerator,
    checker: SecondChecker,
    records: Sequence[UserRecord],
) -> None:
    """State how easy reasons, templates and free text read, and how much of the free text is true."""
    context.tell(f"{len(records)} texts without a grammar, to compare")
    rows = runner.run(_written(generator, [record.evidence for record in records]))
    for row, record in zip(rows, records, strict=True):
        wrong = checker.wrong(row["free"], user_id=record.user_id, item_id=record.item_id)
        row |= {"source": "free", "second": wrong or "true"}
    file = save_table(context, "reading", rows)
    for writer in WRITERS:
        context.target(f"reading_ease_{writer}", "reading_ease_mean", file, column=writer)
    context.target("free_independent_pass_rate", "column_share", file, column="second", equals="true")


def reference(
    context: BenchContext, runner: asyncio.Runner, generator: VllmGenerator, folder: Path, *, rows: int, seed: int
) -> None:
    """State the share of reference facts covered, where the reference explanations are there.

    A record holds the title and up to three words that the summaries of user and item have in common. A fact is a
    content word of the reference that the summaries hold too: nobody could know the others.
    """
    files = sorted(folder.glob("*_tst.jsonl")) if folder.is_dir() else []
    if not files:
        context.facts["reference"] = f"not measured: no reference explanations in {folder}"
        context.tell(context.facts["reference"])
        return
    read = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    rare = Counter(s for row in read for s in content(row["item_summary"]))
    chosen = np.random.default_rng(seed).permutation(len(read))[:rows]
    wanted = [read[int(at)] for at in chosen]
    made = runner.run(_written(generator, [_record(row, rare) for row in wanted]))
    for found, row in zip(made, wanted, strict=True):
        known = content(f"{row['user_summary']} {row['item_summary']} {row['title']}")
        found["facts"] = " ".join(sorted(content(row["explanation"]) & known))
    file = save_table(context, "reference", made)
    for writer in WRITERS:
        context.target(f"reference_facts_covered_{writer}", "facts_covered", file, column=writer)


def _record(row: dict[str, str], rare: Counter[str]) -> Evidence:
    """Return what may be said: the title and the rarest words that both summaries hold, else the item's own."""
    spoken: dict[str, str] = {}
    for word in row["item_summary"].replace(",", " ").replace(".", " ").split():
        if word.isalpha() and word.islower() and len(word) > 3:
            spoken.setdefault(stem(word), word)
    shared = content(row["user_summary"]) & spoken.keys()
    own = sorted(shared or content(row["item_summary"]) & spoken.keys(), key=lambda s: (rare[s], s))[:_ASPECTS]
    return Evidence(item=quotable_text(row["title"]), attributes=tuple(Attribute(spoken[s], "genre") for s in own))


async def _written(generator: VllmGenerator, records: Sequence[Evidence]) -> list[dict[str, str]]:
    """Return what each of the three writers says about every record."""
    numbered = [UserRecord("", "", evidence) for evidence in records]
    said: dict[int, str] = {}
    for at in range(0, len(records), 10):
        writer = cold(generator)
        async for reason in writer.write(tasks_of(numbered[at : at + 10]), deadline_s=600.0):
            said[at + reason.slot] = reason.text
    free: list[str] = []
    for at in range(0, len(records), 10):
        calls = [
            generator.complete(generator.prompt_of(ReasonRequest(e)), grammar=None, max_tokens=_FREE_TOKENS)
            for e in records[at : at + 10]
        ]
        free += await asyncio.gather(*calls)
    return [
        {"reason": said[at], "template": template_reason(evidence), "free": free[at]}
        for at, evidence in enumerate(records)
    ]
