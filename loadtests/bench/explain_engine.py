"""The part `engine` of the benchmark `explain`: what grammar, cache, queue and checker cost over the bare engine.

All comparisons are interleaved in one run on one machine. Prompts of a round are the same for all arms; prefix caches
are kept apart by salt where one engine serves two arms, so that no arm finds what another computed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from cluster.config import Settings
from cluster.reason_records import UserRecord
from cluster.workspace import Workspace
from loadtests.bench.explain import cold, tasks_of
from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError
from models.explain.engine_options import EngineOptions, engine_arguments, engine_environment, engine_options
from models.explain.evidence import Evidence
from models.explain.explainer import ReasonWriter
from models.explain.generator import ReasonRequest
from models.explain.grammar import reason_grammar
from models.explain.vllm_generator import VllmGenerator
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.reasons import write_reasons
from serve.stages import LocalExplainer


def engine(
    context: BenchContext,
    runner: asyncio.Runner,
    generator: VllmGenerator,
    settings: Settings,
    lists: Sequence[Sequence[UserRecord]],
) -> None:
    """State `grammar_time_ratio`, `first_reason_ratio` and `throughput_vs_engine`."""
    if len(lists) < 3:
        raise LoadError("the data set has too few users for the part engine")
    arms = _Arms(runner, generator, lists)
    raw = context.interleave("grammar", {"grammar": arms.under_grammar, "free": arms.free}, max_s=300)
    context.target("grammar_time_ratio", "paired_ratio", raw, over="grammar", under="free", aim=Aim(at_most=1.15))
    raw = context.interleave("first", {"ours": arms.first_reason, "bare": arms.first_bare}, max_s=300)
    context.target("first_reason_ratio", "paired_ratio", raw, over="ours", under="bare", aim=Aim(at_most=1.15))
    with bare_engine(Workspace(settings).generator_folder(), engine_options(settings.models.generator)) as llm:
        arms.llm = llm
        raw = context.interleave("throughput", {"ours": arms.list_ms, "bare": arms.bare_list_ms}, max_s=600)
    # The samples are ms a list, so the ratio of throughputs is theirs upside down.
    context.target("throughput_vs_engine", "paired_ratio", raw, over="bare", under="ours", aim=Aim(at_least=0.9))


class _Arms:
    """The arms, each one list of ten a call; all arms of a round get the same list."""

    def __init__(self, runner: asyncio.Runner, generator: VllmGenerator, lists: Sequence[Sequence[UserRecord]]) -> None:
        self._run, self._generator, self._lists = runner.run, generator, lists
        self._writer: ReasonWriter = cold(generator)
        self._calls: dict[str, Iterator[int]] = {}
        self._salts = itertools.count()
        self._free_tokens = 24
        self.llm: Any = None

    def _next(self, arm: str) -> Sequence[UserRecord]:
        turn = next(self._calls.setdefault(arm, itertools.count()))
        return self._lists[turn % len(self._lists)]

    def under_grammar(self) -> float:
        """Milliseconds per token of ten streams under their grammars, from cold."""
        records = self._next("grammar")
        before = self._generator.generated_tokens
        taken_ms = self._run(self._complete([r.evidence for r in records], grammar=True))
        tokens = self._generator.generated_tokens - before
        self._free_tokens = max(4, tokens // len(records))
        return taken_ms / tokens

    def free(self) -> float:
        """The same prompts without a grammar, each cut at about as many tokens."""
        records = self._next("free")
        before = self._generator.generated_tokens
        taken_ms = self._run(self._complete([r.evidence for r in records], grammar=False))
        return taken_ms / (self._generator.generated_tokens - before)

    async def _complete(self, records: Sequence[Evidence], *, grammar: bool) -> float:
        salt, started = f"bench-{next(self._salts)}", time.perf_counter()
        calls = [
            self._generator.complete(
                self._generator.prompt_of(ReasonRequest(evidence)),
                grammar=reason_grammar(evidence) if grammar else None,
                salt=salt,
                max_tokens=0 if grammar else self._free_tokens,
            )
            for evidence in records
        ]
        await asyncio.gather(*calls)
        return (time.perf_counter() - started) * 1000.0

    def first_reason(self) -> float:
        """Milliseconds to the first reason of a list through `write_reasons`, cold, without a hop."""
        records = [r.evidence for r in self._next("ours-first")]
        return self._run(self._first_reason(records))

    async def _first_reason(self, records: Sequence[Evidence]) -> float:
        ctx = RequestContext("bench", f"bench-{next(self._salts)}", "", Deadline.after_ms(60_000), 0)
        explainer, started, first_ms = LocalExplainer(cold(self._generator)), time.perf_counter(), 0.0
        async with aclosing(
            write_reasons(ctx, explainer, records, language="en", deadline_ms=60_000)  # type: ignore[type-var]
        ) as reasons:
            async for reason in reasons:
                if reason.source == "llm" and not first_ms:
                    first_ms = (time.perf_counter() - started) * 1000.0
        return first_ms or (time.perf_counter() - started) * 1000.0

    def first_bare(self) -> float:
        """Milliseconds until the same engine, asked directly, has finished the first of the same ten prompts."""
        records = [r.evidence for r in self._next("bare-first")]
        return self._run(self._first_bare(records))

    async def _first_bare(self, records: Sequence[Evidence]) -> float:
        salt = f"bench-{next(self._salts)}"
        prompts = [(self._generator.prompt_of(ReasonRequest(e)), reason_grammar(e)) for e in records]
        started = time.perf_counter()
        calls = [
            asyncio.ensure_future(self._generator.complete(prompt, grammar=grammar, priority=at, salt=salt))
            for at, (prompt, grammar) in enumerate(prompts)
        ]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        first_ms = (time.perf_counter() - started) * 1000.0
        await asyncio.gather(*calls)
        return first_ms

    def list_ms(self) -> float:
        """Milliseconds to write two lists with the reason writer: prompt, grammar, queue, check."""
        return self._run(self._written([*self._next("ours"), *self._next("ours")]))

    async def _written(self, records: Sequence[UserRecord]) -> float:
        started = time.perf_counter()
        async for _ in self._writer.write(tasks_of(records), deadline_s=600.0):
            pass
        return (time.perf_counter() - started) * 1000.0

    def bare_list_ms(self) -> float:
        """Milliseconds that vLLM's offline engine takes for the same prompts and grammars, made beforehand."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        records = [r.evidence for r in (*self._next("bare"), *self._next("bare"))]
        prompts = [{"prompt_token_ids": self._generator.prompt_of(ReasonRequest(e))} for e in records]
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=192,
                structured_outputs=StructuredOutputsParams(grammar=reason_grammar(e)),
            )
            for e in records
        ]
        started = time.perf_counter()
        self.llm.generate(prompts, sampling, use_tqdm=False)
        return (time.perf_counter() - started) * 1000.0


@contextmanager
def bare_engine(folder: Path, options: EngineOptions) -> Iterator[Any]:
    """Start vLLM's offline engine with the arguments of ours; its processes end with the context."""
    with engine_environment(options):
        from vllm import LLM

        llm = LLM(**engine_arguments(folder, options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
