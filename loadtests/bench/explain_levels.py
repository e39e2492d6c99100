"""The part `levels` of the benchmark `explain`: the same records through the closed and the open grammar.

One model in one engine writes every record twice, list by list and each level first in turn, from prompts that are the
same but for the salt of the prefix cache. Both checkers judge what it wrote before any fallback. This is what the level
of a model is chosen by (`models.generator.grammar`): reported, never tuned, so no target here has an aim.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from cluster.reason_records import UserRecord
from loadtests.bench.explain import K, masked, save_table
from loadtests.bench.harness import BenchContext
from loadtests.bench.second_checker import SecondChecker
from models.explain.checker import check_reason
from models.explain.evidence import Evidence
from models.explain.generator import ReasonRequest
from models.explain.grammar import reason_grammar
from models.explain.open_grammar import open_grammar
from models.explain.vllm_generator import VllmGenerator

LEVELS: dict[str, Callable[[Evidence], str]] = {"closed": reason_grammar, "open": open_grammar}
_SHOWN = 3
"""Sentences of a level, and refused ones, that the facts hold, for people to read."""


def levels(
    context: BenchContext,
    runner: asyncio.Runner,
    generator: VllmGenerator,
    checker: SecondChecker,
    records: Sequence[UserRecord],
) -> None:
    """State for each level what passes both checkers, how varied and easy to read it is, and what it costs."""
    context.tell(f"{len(records)} records under each grammar level")
    said: dict[str, list[str]] = {level: [] for level in LEVELS}
    tokens: list[dict[str, object]] = []
    seconds: list[dict[str, object]] = []
    for turn, at in enumerate(range(0, len(records), K)):
        part = [record.evidence for record in records[at : at + K]]
        for level in sorted(LEVELS, reverse=turn % 2 == 1):
            before, started = generator.generated_tokens, time.perf_counter()
            said[level] += runner.run(_under(generator, level, part))
            cell = {"round": turn, "arm": level}
            seconds.append(cell | {"value": (time.perf_counter() - started) / len(part)})
            tokens.append(cell | {"value": (generator.generated_tokens - before) / len(part)})
    context.facts["levels_model"] = generator.model
    for level, sentences in said.items():
        _judged(context, checker, level, records, sentences)
    counts, times = save_table(context, "levels_tokens", tokens), save_table(context, "levels_seconds", seconds)
    for level in LEVELS:
        context.target(f"{level}_tokens_a_reason", "arm", counts, name=level, statistic="mean")
    context.target("open_time_over_closed", "paired_ratio", times, over="open", under="closed", statistic="mean")


async def _under(generator: VllmGenerator, level: str, part: Sequence[Evidence]) -> list[str]:
    """Return what the model writes about each record under a level; one list's reasons at once, as a request asks."""
    calls = [
        generator.complete(
            generator.prompt_of(ReasonRequest(evidence)), grammar=LEVELS[level](evidence), priority=place, salt=level
        )
        for place, evidence in enumerate(part)
    ]
    return list(await asyncio.gather(*calls))


def _judged(
    context: BenchContext,
    checker: SecondChecker,
    level: str,
    records: Sequence[UserRecord],
    sentences: Sequence[str],
) -> None:
    """Keep the sentences of a level with both verdicts, and state its figures.

    Variety and ease of reading are of all sentences, so that both levels are asked the same number.
    """
    rows = []
    for record, text in zip(records, sentences, strict=True):
        verdict = check_reason(text, record.evidence)
        second = checker.wrong(text, user_id=record.user_id, item_id=record.item_id) or "true"
        source = "passed" if verdict == "ok" else "refused"
        about = masked(text, record.evidence)
        rows.append({"source": source, "verdict": verdict, "second": second, "text": text, "masked": about})
    file = save_table(context, f"levels_{level}", rows)
    context.facts[f"levels_{level}"] = {
        "verdicts": dict(Counter(row["verdict"] for row in rows).most_common()),
        "second": dict(Counter(row["second"].partition(":")[0] for row in rows).most_common()),
        "sentences": [row["text"] for row in rows if row["source"] == "passed"][:_SHOWN],
        "refused": [row["text"] for row in rows if row["source"] == "refused"][:_SHOWN],
    }
    context.target(f"{level}_first_pass_rate", "column_share", file, column="verdict", equals="ok")
    second_true = {"column": "second", "equals": "true"}
    context.target(f"{level}_independent_pass_rate", "column_share", file, among="passed", **second_true)
    context.target(f"{level}_independent_pass_rate_unchecked", "column_share", file, **second_true)
    context.target(f"{level}_distinct_masked", "distinct_share", file, column="masked")
    context.target(f"{level}_reading_ease", "reading_ease_mean", file, column="text")
