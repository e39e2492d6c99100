"""The Explainer deployment: stage 5, the only process tree with the language model in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

from models.explain.explainer import Reason, ReasonWriter
from models.explain.generator import Generator
from models.settings import GeneratorSettings
from serve.context import StageCall
from serve.deployments.replica import ReplicaConfig, check_packages, open_cache, open_reasons
from serve.ports import ReasonTask
from serve.stages import LocalExplainer

log = logging.getLogger("raycommend.explainer")
RESTART_PAUSE_S = 5.0


class ExplainerDeployment:
    """Writes reasons. Ready when the engine is; while the engine restarts later, templates answer."""

    async def __init__(self, config: ReplicaConfig, folder: str, settings: GeneratorSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        from models.explain.engine_options import engine_options
        from models.explain.vllm_generator import VllmGenerator

        check_packages(config)
        self._generator = VllmGenerator(Path(folder), engine_options(settings))
        cache = open_reasons(config, open_cache(config))
        self._explainer = LocalExplainer(ReasonWriter(self._generator, max_pending=settings.max_pending, cache=cache))
        await self._generator.start()
        self._watch = asyncio.create_task(keep_alive(self._generator))

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """Stream one reason per evidence record."""
        async for reason in self._explainer.explain(call, task):
            yield reason

    async def healthy(self) -> bool:
        """Whether the engine lives and makes progress."""
        return await self._explainer.healthy()


async def keep_alive(generator: Generator, *, pause_s: float = RESTART_PAUSE_S) -> None:
    """Restart an engine that died or hangs, for ever, whatever goes wrong in between."""
    while True:
        await asyncio.sleep(pause_s)
        try:
            if await generator.healthy():
                continue
            log.warning("the engine is dead or hangs; starting it again")
            await generator.close()
            await generator.start()
        except Exception as error:
            log.warning("the engine did not start (%s); trying again in %g s", type(error).__name__, pause_s)
