"""Fill the reason cache ahead of time: Ray Data hands evidence records to a worker with an engine of its own.

The worker writes with the same generator, grammar and checker as the live path and keeps reasons under the same keys.
What the cache holds already costs a look-up. Called by `raycommend explain --warm`.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.explain.evidence_json import evidence_from_json
from models.explain.explainer import ReasonWriter
from models.explain.generator import Generator
from models.explain.reason_cache import TieredReasons
from models.settings import GeneratorSettings
from models.store.cache_store import CacheStore, RedisCache
from pipelines.writers import vllm_generator

_PATIENCE_S = 600.0
BATCH = 20
Outcome = Mapping[str, int]
"""Reasons by who wrote them (`llm`, `cache`, `template`), so far."""


@dataclass(frozen=True)
class WarmOptions:
    """What a worker needs; picklable. The URL of the cache store stays in the environment, under `cache_variable`."""

    folder: str
    generator: GeneratorSettings
    cache_variable: str
    ttl_s: float
    language: str = "en"
    tenant: str = "main"
    make_generator: Callable[[str, GeneratorSettings], Generator] | None = None
    """Another generator than vLLM, for tests."""


class WarmReasons:
    """One worker. Its engine ends with the worker's process."""

    def __init__(self, options: WarmOptions) -> None:
        """Start the engine; takes up to a minute on a CPU."""
        self._options = options
        self._runner = asyncio.Runner()
        make = options.make_generator or vllm_generator
        self._generator = make(options.folder, options.generator)
        self._cache: CacheStore = RedisCache(os.environ[options.cache_variable], timeout_s=2.0)
        reasons = TieredReasons(self._generator.model, shared=self._cache, ttl_s=options.ttl_s)
        self._reasons = reasons
        self._writer = ReasonWriter(self._generator, max_pending=options.generator.max_pending, cache=reasons)
        self._runner.run(self._generator.start())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Write the reasons of a batch (column `evidence`, JSON); return who wrote each (column `source`)."""
        records = [evidence_from_json(str(text)) for text in batch["evidence"]]
        return {"source": self._runner.run(self._written(list(enumerate(records))))}

    async def _written(self, tasks: Sequence[tuple[int, Any]]) -> list[str]:
        of = self._options
        found = self._writer.write(tasks, language=of.language, tenant=of.tenant, deadline_s=_PATIENCE_S)
        sources = {reason.slot: str(reason.source) async for reason in found}
        await self._reasons.flush()
        return [sources[slot] for slot, _ in tasks]

    def close(self) -> None:
        """End the engine and the connections."""
        self._runner.run(self._generator.close())
        self._runner.run(self._cache.close())
        self._runner.close()


def warm(records: Sequence[str], options: WarmOptions, *, num_cpus: float = 0.5) -> Iterator[Outcome]:
    """Write a reason for every record (JSON) on the Ray this process is connected to; yield counts as they grow."""
    import ray

    counts: Counter[str] = Counter()
    data = ray.data.from_items([{"evidence": record} for record in records], override_num_blocks=1)
    done = data.map_batches(
        WarmReasons, fn_constructor_args=(options,), batch_size=BATCH, concurrency=1, num_cpus=num_cpus
    )
    for batch in done.iter_batches(batch_size=BATCH, prefetch_batches=0):
        counts.update(str(source) for source in batch["source"])
        yield dict(counts)
