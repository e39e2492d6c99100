"""The Explainer deployment: stage 5, the only process tree with the language model in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from models.explain.explainer import Reason, ReasonWriter
from models.explain.generator import GeneratorError
from models.settings import GeneratorSettings
from serve.context import StageCall
from serve.deployments.replica import ReplicaConfig, check_packages
from serve.ports import ReasonTask
from serve.stages import LocalExplainer

RESTART_PAUSE_S = 5.0


class ExplainerDeployment:
    """Writes reasons. Ready at once: while the engine starts or restarts, templates answer."""

    async def __init__(self, config: ReplicaConfig, folder: str, settings: GeneratorSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        from models.explain.vllm_generator import EngineOptions, VllmGenerator

        check_packages(config)
        self._generator = VllmGenerator(
            Path(folder),
            EngineOptions(
                dtype=settings.dtype,
                max_model_len=settings.max_model_len_tokens,
                kv_cache_gib=settings.kv_cache_gib,
                threads=settings.threads,
                nice=settings.niceness,
                max_queued=settings.max_pending,
            ),
        )
        self._explainer = LocalExplainer(ReasonWriter(self._generator, max_pending=settings.max_pending))
        await self._generator.start()
        self._watch = asyncio.create_task(self._keep_alive())

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """Stream one reason per evidence record."""
        async for reason in self._explainer.explain(call, task):
            yield reason

    async def engine_ready(self) -> bool:
        """Whether the engine lives and makes progress. Not a health check: templates serve without it."""
        return bool(await self._generator.healthy())

    async def _keep_alive(self) -> None:
        """Restart an engine that died or hangs, for ever."""
        while True:
            await asyncio.sleep(RESTART_PAUSE_S)
            if not await self._generator.healthy():
                try:
                    await self._generator.close()
                    await self._generator.start()
                except GeneratorError:
                    continue
