"""When an engine counts as hung, with a fake in the place of vLLM's `AsyncLLM`; `test_generator` stops a real one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.explain.engine_options import EngineOptions
from models.explain.evidence import EMPTY
from models.explain.generator import GeneratorError, ReasonRequest
from models.explain.vllm_generator import VllmGenerator

pytestmark = pytest.mark.filterwarnings("default")  # vLLM's own imports warn
REQUEST = ReasonRequest(EMPTY)


class Engine:
    """Answers while `writes` is set, but never the requests whose numbers are in `stuck`."""

    def __init__(self) -> None:
        self.writes, self.alive = asyncio.Event(), True
        self.asked = 0
        self.stuck: set[int] = set()
        self.waiting: list[asyncio.Future[Exception]] = []
        self.output_handler = None
        self.output_processor = SimpleNamespace(propagate_error=self._fail)
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(ctx=SimpleNamespace(destroy=lambda linger: None)))
        self.writes.set()

    def get_tokenizer(self) -> Any:
        return Tokenizer()

    async def generate(self, prompt: Any, params: Any, **_: Any) -> AsyncIterator[Any]:
        self.asked += 1
        failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self.waiting.append(failed)
        written = asyncio.create_task((asyncio.Event() if self.asked in self.stuck else self.writes).wait())
        try:
            await asyncio.wait({written, failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            written.cancel()
        if failed.done():
            raise failed.result()
        yield SimpleNamespace(num_cached_tokens=0, outputs=[SimpleNamespace(token_ids=[1], text="Something else.")])

    def _fail(self, error: Exception) -> None:
        for one in self.waiting:
            if not one.done():
                one.set_result(error)

    async def check_health(self) -> None:
        if not self.alive:
            raise RuntimeError("dead")

    def shutdown(self, timeout: float) -> None:
        self.alive = False


class Tokenizer:
    """One token a character."""

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(m["content"] for m in messages)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}


@pytest.fixture
async def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[VllmGenerator, Engine]]:
    (tmp_path / "config.json").write_text("{}")
    engine = Engine()
    monkeypatch.setattr(VllmGenerator, "_load", lambda self, mark, into: into.append(engine))
    generator = VllmGenerator(tmp_path, EngineOptions(hung_after_s=0.3))
    await generator.start()
    yield generator, engine
    await generator.close()


async def left_after(generator: VllmGenerator, seconds: float) -> None:
    """A reader who gives up."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(seconds):
            await generator.generate(REQUEST)


async def test_an_idle_engine_is_asked_nothing(started: tuple[VllmGenerator, Engine]) -> None:
    generator, engine = started
    asked = engine.asked
    await asyncio.sleep(0.35)
    assert await generator.healthy() and engine.asked == asked


async def test_readers_who_left_do_not_hide_a_hung_engine(started: tuple[VllmGenerator, Engine]) -> None:
    generator, engine = started
    engine.writes.clear()
    await left_after(generator, 0.05)
    assert generator.in_flight == 0 and await generator.healthy(), "too early to tell"
    await asyncio.sleep(0.3)
    assert not await generator.healthy()
    assert generator.in_flight == 0, "the question of the watchdog was taken back"


async def test_a_reader_who_left_is_no_sign_of_a_hung_engine(started: tuple[VllmGenerator, Engine]) -> None:
    generator, engine = started
    engine.writes.clear()
    await left_after(generator, 0.05)
    engine.writes.set()
    await asyncio.sleep(0.3)
    asked = engine.asked
    assert await generator.healthy() and engine.asked == asked + 1
    assert await generator.healthy() and engine.asked == asked + 1, "one answer clears the suspicion"


async def test_those_who_wait_while_others_were_answered_count_too(started: tuple[VllmGenerator, Engine]) -> None:
    generator, engine = started
    engine.stuck = set(range(engine.asked + 1, engine.asked + 100)) - {engine.asked + 2}
    hung, answered = (asyncio.create_task(generator.generate(REQUEST)) for _ in range(2))
    assert await answered and not hung.done()
    assert await generator.healthy()
    await asyncio.sleep(0.35)
    assert not await generator.healthy()
    hung.cancel()
    await asyncio.gather(hung, return_exceptions=True)


async def test_whoever_waits_for_an_engine_that_is_ended_is_told(started: tuple[VllmGenerator, Engine]) -> None:
    generator, engine = started
    engine.writes.clear()
    waiting = asyncio.create_task(generator.generate(REQUEST))
    await asyncio.sleep(0.01)
    await generator.close()
    with pytest.raises(GeneratorError):
        await asyncio.wait_for(waiting, 5.0)
    assert not await generator.healthy()
