"""Judge what reviews say: Ray Data hands facts to a worker with an engine of its own.

The worker says of each aspect whether it is praised, under the closed grammar of the facts, and checks the verdict; the
counts stand where the model did not do. Called by `raycommend explain --reviews`. Knows nothing of where facts come
from or verdicts go.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from models.explain.aspects import Aspects, Judged, aspects_from_json, aspects_to_json, check_verdict, template_verdict
from models.explain.generator import GeneratorError
from pipelines.interests import BATCH, SummaryOptions, vllm_generator


class Verdict(NamedTuple):
    """What was found out about one item, and who said so: `llm`, or `template` for the counts."""

    item_id: str
    judged: Judged
    source: str


class AppraiseItems:
    """One worker. Its engine ends with the worker's process."""

    def __init__(self, options: SummaryOptions) -> None:
        """Start the engine; takes up to a minute on a CPU."""
        self._options = options
        self._runner = asyncio.Runner()
        self._generator = (options.make_generator or vllm_generator)(options.folder, options.generator)
        self._runner.run(self._generator.start())

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Judge a batch (columns `item`, `facts` as JSON); return columns `item`, `judged` as JSON, `source`."""
        facts = [aspects_from_json(str(text)) for text in batch["facts"]]
        written = self._runner.run(self._judged(facts))
        return {
            "item": [str(item) for item in batch["item"]],
            "judged": [json.dumps(dict(judged)) for judged, _ in written],
            "source": [source for _, source in written],
        }

    async def _judged(self, facts: Sequence[Aspects]) -> list[tuple[Judged, str]]:
        return list(await asyncio.gather(*(self._one(one) for one in facts)))

    async def _one(self, aspects: Aspects) -> tuple[Judged, str]:
        spare = check_verdict(template_verdict(aspects), aspects) or {}
        try:
            text = await self._generator.appraise(aspects, tenant=self._options.tenant)
        except GeneratorError:
            return spare, "template"
        judged = check_verdict(text, aspects)
        return (spare, "template") if judged is None else (judged, "llm")

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._generator.close())
        self._runner.close()


def verdicts(
    facts: Mapping[str, Aspects], options: SummaryOptions, *, num_cpus: float = 0.5
) -> Iterator[list[Verdict]]:
    """Judge the aspects of every item on the Ray this process is connected to; yield batches as they are done."""
    import ray

    rows = [{"item": item, "facts": aspects_to_json(one)} for item, one in facts.items()]
    done = ray.data.from_items(rows, override_num_blocks=1).map_batches(
        AppraiseItems, fn_constructor_args=(options,), batch_size=BATCH, concurrency=1, num_cpus=num_cpus
    )
    for batch in done.iter_batches(batch_size=BATCH, prefetch_batches=0):
        columns = (map(str, batch[name]) for name in ("item", "judged", "source"))
        yield [Verdict(item, json.loads(judged), source) for item, judged, source in zip(*columns, strict=True)]
