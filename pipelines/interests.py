"""Write what users are interested in: Ray Data hands facts to a worker with an engine of its own.

The worker writes two sentences under the closed grammar of the facts and checks them; a template stands where the model
did not do. Called by `raycommend explain --summaries`. Knows nothing of where facts come from or summaries go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.explain.generator import Generator, GeneratorError
from models.explain.interests import Interests, check_summary, template_summary
from models.settings import GeneratorSettings

BATCH = 20
Summary = tuple[str, str, str]
"""User id, summary, and who wrote it: `llm`, `template` or `none` (nothing is known)."""


@dataclass(frozen=True)
class SummaryOptions:
    """What a worker needs; picklable."""

    folder: str
    generator: GeneratorSettings
    tenant: str = "main"
    make_generator: Callable[[str, GeneratorSettings], Generator] | None = None
    """Another generator than vLLM, for tests."""


class SummariseUsers:
    """One worker. Its engine ends with the worker's process."""

    def __init__(self, options: SummaryOptions) -> None:
        """Start the engine; takes up to a minute on a CPU."""
        self._options = options
        self._runner = asyncio.Runner()
        self._generator = (options.make_generator or vllm_generator)(options.folder, options.generator)
        self._runner.run(self._generator.start())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Write a batch (columns `user`, `facts` as JSON); return columns `user`, `summary`, `source`."""
        facts = [Interests.from_json(str(text)) for text in batch["facts"]]
        written = self._runner.run(self._written(facts))
        return {
            "user": [str(user) for user in batch["user"]],
            "summary": [text for text, _ in written],
            "source": [source for _, source in written],
        }

    async def _written(self, facts: Sequence[Interests]) -> list[tuple[str, str]]:
        return list(await asyncio.gather(*(self._one(one) for one in facts)))

    async def _one(self, facts: Interests) -> tuple[str, str]:
        spare = template_summary(facts)
        if not spare:
            return "", "none"
        try:
            text = await self._generator.summarise(facts, tenant=self._options.tenant)
        except GeneratorError:
            return spare, "template"
        return (text, "llm") if check_summary(text, facts) else (spare, "template")

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._generator.close())
        self._runner.close()


def summaries(
    facts: Mapping[str, Interests], options: SummaryOptions, *, num_cpus: float = 0.5
) -> Iterator[list[Summary]]:
    """Write a summary per user on the Ray this process is connected to; yield batches as they are done."""
    import ray

    rows = [{"user": user, "facts": one.to_json()} for user, one in facts.items()]
    done = ray.data.from_items(rows, override_num_blocks=1).map_batches(
        SummariseUsers, fn_constructor_args=(options,), batch_size=BATCH, concurrency=1, num_cpus=num_cpus
    )
    for batch in done.iter_batches(batch_size=BATCH, prefetch_batches=0):
        columns = (map(str, batch[name]) for name in ("user", "summary", "source"))
        yield list(zip(*columns, strict=True))


def vllm_generator(folder: str, settings: GeneratorSettings) -> Generator:
    """Return the generator of the settings; nothing is loaded before its `start`."""
    from models.explain.engine_options import engine_options
    from models.explain.vllm_generator import VllmGenerator

    return VllmGenerator(Path(folder), engine_options(settings))
