"""Ray Data workers with a language model's engine of their own: facts go in as JSON, checked text comes out.

What is written, and what makes it true, belongs to the kind of writer (`interests`, `aspects`). Knows nothing of where
facts come from or texts go.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.explain.generator import Generator
from models.settings import GeneratorSettings

BATCH = 20
Written = tuple[str, str, str]
"""Id, text, and who wrote it: `llm`, `template`, or `none` where there was nothing to say."""


@dataclass(frozen=True)
class WriterOptions:
    """What a worker needs; picklable."""

    folder: str
    generator: GeneratorSettings
    tenant: str = "main"
    make_generator: Callable[[str, GeneratorSettings], Generator] | None = None
    """Another generator than vLLM, for tests."""


class Writer(ABC):
    """One worker. Its engine ends with the worker's process."""

    def __init__(self, options: WriterOptions) -> None:
        """Start the engine; takes up to a minute on a CPU."""
        self.tenant = options.tenant
        self._runner = asyncio.Runner()
        self.generator = (options.make_generator or vllm_generator)(options.folder, options.generator)
        self._runner.run(self.generator.start())

    @abstractmethod
    async def write(self, facts: str) -> tuple[str, str]:
        """Return what is written about `facts` (JSON), and who wrote it."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Write a batch (columns `id`, `facts`), all of it at once; return columns `id`, `text`, `source`."""
        written = self._runner.run(self._all([str(facts) for facts in batch["facts"]]))
        return {
            "id": [str(one) for one in batch["id"]],
            "text": [text for text, _ in written],
            "source": [source for _, source in written],
        }

    async def _all(self, facts: list[str]) -> list[tuple[str, str]]:
        return await asyncio.gather(*(self.write(one) for one in facts))

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self.generator.close())
        self._runner.close()


def written(
    facts: Mapping[str, str], writer: type[Writer], options: WriterOptions, *, num_cpus: float = 0.5
) -> Iterator[list[Written]]:
    """Write about `facts` (JSON by id) on the Ray this process is connected to; yield batches as they are done."""
    import ray

    rows = [{"id": one, "facts": text} for one, text in facts.items()]
    done = ray.data.from_items(rows, override_num_blocks=1).map_batches(
        writer, fn_constructor_args=(options,), batch_size=BATCH, concurrency=1, num_cpus=num_cpus
    )
    for batch in done.iter_batches(batch_size=BATCH, prefetch_batches=0):
        columns = (map(str, batch[name]) for name in ("id", "text", "source"))
        yield list(zip(*columns, strict=True))


def vllm_generator(folder: str, settings: GeneratorSettings) -> Generator:
    """Return the generator of the settings; nothing is loaded before its `start`."""
    from models.explain.engine_options import engine_options
    from models.explain.vllm_generator import VllmGenerator

    return VllmGenerator(Path(folder), engine_options(settings))
