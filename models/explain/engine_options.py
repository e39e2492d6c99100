"""How a vLLM engine runs: its options, the arguments and the environment that follow from them.

One place for the generator's own engine and for a bare one that a benchmark compares it with. Set-up follows the vLLM
documentation on CPU back ends. Knows nothing of prompts or requests; imports no vLLM.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.settings import GeneratorSettings, GrammarLevel

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


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
    """An engine that was asked and finished nothing for this long is asked for one token; see `healthy`."""
    collect_stats: bool = False
    """Count prefix-cache hits (see `VllmGenerator.prefix_cache`); costs a little per step."""


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
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
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
