"""The generator that writes with vLLM, on the CPU or on CUDA, in processes of its own.

One `AsyncLLM` with prefix caching and priority scheduling; temperature 0 under the grammar of the request's evidence.
The engine's processes end with this one, even after `kill -9` (see `models.explain.reaper`). Called by whoever hosts
the explainer; knows nothing of Ray or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

from models.explain.aspects import Aspects, aspect_grammar
from models.explain.engine_end import end_engine
from models.explain.engine_options import EngineOptions, engine_arguments, engine_environment
from models.explain.evidence import EMPTY
from models.explain.generator import GeneratorBusy, GeneratorError, ReasonRequest, model_of
from models.explain.grammar import reason_grammar
from models.explain.interests import Interests, summary_grammar
from models.explain.open_grammar import open_grammar
from models.explain.prompt import PromptBuilder
from models.explain.reaper import MARK, Reaper

_log = logging.getLogger(__name__)


class VllmGenerator:
    """A `Generator` on vLLM. For one event loop; `start` may be called again after `close`."""

    def __init__(self, folder: Path | str, options: EngineOptions | None = None) -> None:
        """`folder` holds a transformers model with a chat template; nothing is loaded before `start`."""
        self._folder = Path(folder)
        self._options = options if options is not None else EngineOptions()
        self._engine: Any = None
        self._reaper: Reaper | None = None
        self._prompts: PromptBuilder | None = None
        self._in_flight = 0
        self._progress = time.monotonic()
        self._unanswered = 0
        self._cached_tokens = 0
        self._prompt_tokens = 0
        self.generated_tokens = 0

    @property
    def model(self) -> str:
        """See `model_of`."""
        return model_of(self._folder, self._options.grammar)

    @property
    def in_flight(self) -> int:
        """Requests under way or queued in the engine."""
        return self._in_flight

    def engine_requests(self) -> int:
        """Return how many requests the engine's front end still tracks; 0 when every slot is free."""
        return int(self._engine.output_processor.get_num_unfinished_requests()) if self._engine is not None else 0

    def child_pids(self) -> list[int]:
        """Return the pids of the engine's processes and of the reaper; for the process ledger."""
        if self._reaper is None:
            return []
        return sorted({*self._reaper.children(), self._reaper.pid})

    def prefix_cache(self) -> tuple[int, int]:
        """Return (prompt tokens found in the prefix cache, prompt tokens in all) since the start."""
        return self._cached_tokens, self._prompt_tokens

    async def start(self) -> None:
        """Load the model; 20-60 s on a CPU. Raises GeneratorError naming what to change."""
        if self._engine is not None:
            return
        if not (self._folder / "config.json").is_file():
            raise GeneratorError(f"{self._folder.name}: no config.json; the generator needs a transformers folder")
        self._reaper = Reaper()
        try:
            # In a thread: loading takes long, and a health check of the same process must answer meanwhile.
            loaded: list[Any] = []
            await asyncio.to_thread(self._load, self._reaper.mark, loaded)
            self._engine = loaded.pop()
            self._prompts = PromptBuilder(self._engine.get_tokenizer(), block_size=self._options.block_size)
        except Exception as error:
            await self.close()
            raise GeneratorError(f"vLLM did not start ({type(error).__name__}: {error}); see its log above") from error
        self._reaper.settle()
        self._answered()
        await self._warm_up()
        if self._options.nice:
            _renice(self._reaper.children(), self._options.nice)

    async def _warm_up(self) -> None:
        """Write once for nobody: the first grammar and the first steps cost seconds that no user should wait for."""
        try:
            await self.generate(ReasonRequest(EMPTY))
        except GeneratorError:
            await self.close()
            raise

    def prompt_of(self, request: ReasonRequest) -> list[int]:
        """Return the prompt of a request as token ids. Raises GeneratorError before `start`."""
        if self._prompts is None:
            raise GeneratorError("the generator has not been started")
        return self._prompts.ids(request.evidence, request.language)

    async def generate(self, request: ReasonRequest) -> str:
        """See `Generator.generate`."""
        prompt = self.prompt_of(request)
        if self._in_flight >= self._options.max_queued:
            raise GeneratorBusy(f"{self._in_flight} requests are in flight")
        grammar_of = open_grammar if self._options.grammar == "open" else reason_grammar
        grammar = grammar_of(request.evidence, request.language)
        return await self.complete(
            prompt,
            grammar=grammar,
            priority=request.priority,
            salt=request.tenant,
        )

    async def summarise(self, interests: Interests, *, tenant: str = "main") -> str:
        """See `Generator.summarise`."""
        prompts = self._ready()
        try:
            grammar = summary_grammar(interests)
        except ValueError as error:
            raise GeneratorError(str(error)) from error
        return await self.complete(prompts.interest_ids(interests), grammar=grammar, salt=tenant)

    async def appraise(self, aspects: Aspects, *, tenant: str = "main") -> str:
        """See `Generator.appraise`."""
        prompts = self._ready()
        try:
            grammar = aspect_grammar(aspects)
        except ValueError as error:
            raise GeneratorError(str(error)) from error
        return await self.complete(prompts.aspect_ids(aspects), grammar=grammar, salt=tenant)

    def _ready(self) -> PromptBuilder:
        """Return what builds prompts. Raises GeneratorError before the start, GeneratorBusy without room."""
        if self._prompts is None:
            raise GeneratorError("the generator has not been started")
        if self._in_flight >= self._options.max_queued:
            raise GeneratorBusy(f"{self._in_flight} requests are in flight")
        return self._prompts

    async def complete(
        self, prompt: list[int], *, grammar: str | None, priority: int = 0, salt: str = "main", max_tokens: int = 0
    ) -> str:
        """Return what the model writes after `prompt`; without a grammar only for measurements."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens or self._options.max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=StructuredOutputsParams(grammar=grammar) if grammar is not None else None,
        )
        if self._unanswered == 0:
            self._progress = time.monotonic()
        self._in_flight += 1
        self._unanswered += 1
        final: Any = None
        # The salt keeps the prefix caches of tenants apart: no tenant can time another's prompts.
        stream = self._engine.generate(
            {"prompt_token_ids": prompt, "cache_salt": salt}, params, request_id=uuid.uuid4().hex, priority=priority
        )
        try:
            async for output in stream:
                final = output
        except Exception as error:
            raise GeneratorError(f"{type(error).__name__}: {error}") from error
        finally:
            self._in_flight -= 1
            await stream.aclose()  # a cancelled caller frees the engine's slot now, not when garbage is collected
        if final is None:
            raise GeneratorError("the engine ended the request without an answer")
        self._answered()
        self._prompt_tokens += len(prompt)
        self._cached_tokens += final.num_cached_tokens or 0
        self.generated_tokens += len(final.outputs[0].token_ids)
        return str(final.outputs[0].text).strip()

    async def healthy(self) -> bool:
        """Whether the engine lives and writes.

        An engine that was asked and finished nothing for `hung_after_s` must write one token in a third of that. Those
        who asked and left count too: they leave a hung engine without a request long before anybody looks.
        """
        if self._engine is None:
            return False
        try:
            await self._engine.check_health()
        except Exception as error:
            _log.warning("the engine is dead: %s", type(error).__name__)
            return False
        if self._unanswered == 0 or time.monotonic() - self._progress < self._options.hung_after_s:
            return True
        return await self._writes()

    async def _writes(self) -> bool:
        before, patience_s = self._progress, self._options.hung_after_s / 3
        try:
            async with asyncio.timeout(patience_s):
                await self.complete(self.prompt_of(ReasonRequest(EMPTY)), grammar=None, priority=-1, max_tokens=1)
        except (TimeoutError, GeneratorError) as error:
            if self._progress > before:  # busy, not hung: somebody's reason was finished meanwhile
                return True
            _log.warning("the engine hangs: no token in %g s (%s)", patience_s, type(error).__name__)
            return False
        return True

    def _answered(self) -> None:
        self._progress, self._unanswered = time.monotonic(), self._in_flight

    async def close(self) -> None:
        """See `Generator.close`."""
        engine, self._engine = self._engine, None
        reaper, self._reaper = self._reaper, None
        self._prompts = None
        if engine is not None and reaper is not None:
            await end_engine(engine, reaper)
            del engine
            gc.collect()  # vLLM's objects are a cycle whose finaliser fails when it runs at interpreter exit
        elif reaper is not None:
            await asyncio.to_thread(reaper.close)

    def _load(self, mark: str, into: list[Any]) -> None:
        """Put an engine into the list.

        It is no result of the thread: exceptions that vLLM's imports keep hold the thread's frames, results included,
        and an engine that outlives `close` prints an error when the interpreter ends.
        """
        with engine_environment(self._options, {MARK: mark}):
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            arguments = AsyncEngineArgs(
                **engine_arguments(self._folder, self._options), disable_log_stats=not self._options.collect_stats
            )
            into.append(AsyncLLM.from_engine_args(arguments))


def _renice(pids: set[int], nice: int) -> None:
    """Add to the niceness of every thread: on Linux it belongs to the thread, and new ones inherit it."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
