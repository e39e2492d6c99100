"""Judge what reviews say: of each aspect whether it is praised, under the closed grammar of the facts, checked.

The counts stand where the model did not do. Called by `raycommend explain --reviews`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from models.explain.aspects import Aspects, Judged, aspects_from_json, aspects_to_json, check_verdict, template_verdict
from models.explain.generator import GeneratorError
from pipelines.writers import Writer, WriterOptions, written


class Verdict(NamedTuple):
    """What was found out about one item, and who said so: `llm`, or `template` for the counts."""

    item_id: str
    judged: Judged
    source: str


class AppraiseItems(Writer):
    """One worker; reads `Aspects`, writes a verdict as JSON."""

    async def write(self, facts: str) -> tuple[str, str]:
        """See `Writer.write`."""
        aspects = aspects_from_json(facts)
        judged, source = await self._judged(aspects)
        return json.dumps(dict(judged)), source

    async def _judged(self, aspects: Aspects) -> tuple[Judged, str]:
        spare = check_verdict(template_verdict(aspects), aspects) or {}
        try:
            text = await self.generator.appraise(aspects, tenant=self.tenant)
        except GeneratorError:
            return spare, "template"
        judged = check_verdict(text, aspects)
        return (spare, "template") if judged is None else (judged, "llm")


def verdicts(facts: Mapping[str, Aspects], options: WriterOptions, *, num_cpus: float = 0.5) -> Iterator[list[Verdict]]:
    """Judge the aspects of every item on the Ray this process is connected to; yield batches as they are done."""
    of = {item: aspects_to_json(one) for item, one in facts.items()}
    for batch in written(of, AppraiseItems, options, num_cpus=num_cpus):
        yield [Verdict(item, json.loads(judged), source) for item, judged, source in batch]
