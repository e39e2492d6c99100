"""The language model's engine is started again when it dies, whatever goes wrong in between."""

import asyncio
import logging

from models.explain.generator import ScriptedGenerator
from serve.deployments.explainer import keep_alive


class Fragile(ScriptedGenerator):
    """An engine whose next starts fail with what is in `failures`; `up` is set by a start that works."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__(lambda _: "")
        self.failures = list(failures)
        self.up = asyncio.Event()

    async def start(self) -> None:
        if self.failures:
            raise self.failures.pop(0)
        await super().start()
        self.up.set()


async def test_a_dead_engine_is_started_again_even_after_errors_nobody_foresaw(caplog) -> None:
    engine = Fragile(OSError("no process left for Zebra77"), ValueError("Zebra77"))
    with caplog.at_level(logging.WARNING):
        watch = asyncio.create_task(keep_alive(engine, pause_s=0.01))
        async with asyncio.timeout(5):
            await engine.up.wait()
        watch.cancel()
    assert engine.started and engine.failures == []
    assert "OSError" in caplog.text and "ValueError" in caplog.text and "Zebra77" not in caplog.text


async def test_an_engine_that_works_is_left_alone() -> None:
    engine = Fragile()
    await engine.start()
    engine.failures.append(RuntimeError("must not be started"))
    watch = asyncio.create_task(keep_alive(engine, pause_s=0.001))
    await asyncio.sleep(0.05)
    watch.cancel()
    assert len(engine.failures) == 1
