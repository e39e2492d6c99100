"""The generator that writes with vLLM, on the CPU or on CUDA, in processes of its own.

One `AsyncLLM` with prefix caching and priority scheduling; temperature 0 under the grammar of the request's evidence.
The engine's processes end with this one, even after `kill -9` (see `models.explain.reaper`). Called by whoever hosts
the explainer; knows nothing of Ray or HTTP. Set-up follows the vLLM documentation on CPU back ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.explain.evidence import EMPTY
from models.explain.generator import GeneratorBusy, GeneratorError, ReasonRequest, model_of
from models.explain.grammar import reason_grammar
from models.explain.open_grammar import open_grammar
from models.explain.prompt import PromptBuilder
from models.explain.reaper import MARK, Reaper
from models.settings import GeneratorSettings, GrammarLevel

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
_SHUTDOWN_S = 5.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs. The defaults suit a small model on a few CPU cores."""

    grammar: GrammarLevel = "closed"
    """How free the model is, see `models.explain.open_grammar`."""
    dtype: Dtype = "auto"
    """`auto`: bfloat16 on CUDA and on CPUs with native bf16, else float32 (four times as fast without it)."""
    max_model_len: int = 1024
    kv_cache_gib: int = 1
    """Key-value cache on the CPU; on CUDA `gpu_memory_utilization` decides."""
    gpu_memory_utilization: float = 0.85
    block_size: int = 32
    """Tokens a cache block on the CPU; only whole blocks are shared between prompts."""
    threads: int = 1
    """Compute threads on the CPU."""
    max_running: int = 16
    """Sequences computed together; on CUDA raise it."""
    max_queued: int = 64
    """Requests in flight beyond which `generate` raises GeneratorBusy."""
    max_tokens: int = 192
    """Longest answer; a grammar ends long before, this bounds what a defect could cost."""
    nice: int = 0
    """Added to the niceness of the engine's processes, so that the list is served first."""
    hung_after_s: float = 30.0
    """An engine with requests and no finished one for this long is not healthy."""
    collect_stats: bool = False
    """Count prefix-cache hits (see `VllmGenerator.prefix_cache`); costs a little per step."""


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
            self._engine = await asyncio.to_thread(self._load, self._reaper.mark)
            self._prompts = PromptBuilder(self._engine.get_tokenizer(), block_size=self._options.block_size)
        except Exception as error:
            await self.close()
            raise GeneratorError(f"vLLM did not start ({type(error).__name__}: {error}); see its log above") from error
        self._reaper.settle()
        self._progress = time.monotonic()
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
        if self._in_flight == 0:
            self._progress = time.monotonic()
        self._in_flight += 1
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
        self._progress = time.monotonic()
        self._prompt_tokens += len(prompt)
        self._cached_tokens += final.num_cached_tokens or 0
        self.generated_tokens += len(final.outputs[0].token_ids)
        return str(final.outputs[0].text).strip()

    async def healthy(self) -> bool:
        """Whether the engine lives and, when it has requests, finishes some."""
        if self._engine is None:
            return False
        try:
            await self._engine.check_health()
        except Exception as error:
            _log.warning("the engine is dead: %s", type(error).__name__)
            return False
        return self._in_flight == 0 or time.monotonic() - self._progress < self._options.hung_after_s

    async def close(self) -> None:
        """See `Generator.close`."""
        engine, self._engine = self._engine, None
        reaper, self._reaper = self._reaper, None
        self._prompts = None
        if engine is not None:
            await _end(engine)
            del engine
            gc.collect()  # vLLM's objects are a cycle whose finaliser fails when it runs at interpreter exit
        if reaper is not None:
            await asyncio.to_thread(reaper.close)

    def _load(self, mark: str) -> Any:
        with engine_environment(self._options, {MARK: mark}):
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            arguments = AsyncEngineArgs(
                **engine_arguments(self._folder, self._options), disable_log_stats=not self._options.collect_stats
            )
            return AsyncLLM.from_engine_args(arguments)


def engine_options(settings: GeneratorSettings) -> EngineOptions:
    """Return how the engine runs as the settings say."""
    return EngineOptions(
        grammar=settings.grammar,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len_tokens,
        kv_cache_gib=settings.kv_cache_gib,
        gpu_memory_utilization=settings.gpu_memory_share,
        max_running=settings.max_running,
        threads=settings.threads,
        nice=settings.niceness,
        max_queued=settings.max_pending,
    )


def engine_arguments(folder: Path, options: EngineOptions) -> dict[str, Any]:
    """Return the arguments of any vLLM engine, ours or a bare one that a benchmark compares with."""
    cuda = _has_cuda()
    place = {"gpu_memory_utilization": options.gpu_memory_utilization} if cuda else {"block_size": options.block_size}
    return {
        "model": str(folder),
        "dtype": engine_dtype(options.dtype, cuda=cuda),
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_running,
        "enforce_eager": not cuda,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "trust_remote_code": False,
        **place,
    }


@contextlib.contextmanager
def engine_environment(options: EngineOptions, more: Mapping[str, str] | None = None) -> Iterator[None]:
    """Set what vLLM reads from the environment when it is imported and when its processes start."""
    with _environment(_variables(options, cuda=_has_cuda()) | dict(more or {})):
        yield


async def _end(engine: Any) -> None:
    """Stop an engine and close what its own shutdown leaves open; a dead engine may fail in any way."""
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # else it logs the end of the engine as an error
    with contextlib.suppress(Exception):
        await asyncio.to_thread(engine.shutdown, _SHUTDOWN_S)
    await asyncio.sleep(0)  # the sockets are closed by a callback of this loop
    with contextlib.suppress(Exception):
        engine.engine_core.resources.ctx.destroy(linger=0)


def engine_dtype(dtype: Dtype, *, cuda: bool, cpu_flags: frozenset[str] | None = None) -> str:
    """Return the number format to load the weights in; see `EngineOptions.dtype`."""
    if dtype != "auto":
        return dtype
    flags = cpu_flags if cpu_flags is not None else _cpu_flags()
    return "bfloat16" if cuda or flags & {"avx512_bf16", "amx_bf16", "bf16"} else "float32"


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    return frozenset(next(lines, "").partition(":")[2].split())


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _variables(options: EngineOptions, *, cuda: bool) -> dict[str, str]:
    shared = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # Spawned, not forked: this process has threads, and the mark must be in the children's own environment.
        "VLLM_WORKER_MULTIPROCESSING_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if cuda:
        return shared
    return shared | {
        "VLLM_CPU_KVCACHE_SPACE": str(options.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(options.threads),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _renice(pids: set[int], nice: int) -> None:
    """Add to the niceness of every thread: on Linux it belongs to the thread, and new ones inherit it."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
