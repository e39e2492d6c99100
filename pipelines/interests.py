"""Write what users are interested in: two sentences under the closed grammar of the facts, checked.

A template stands where the model did not do. Called by `raycommend explain --summaries`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from models.explain.generator import GeneratorError
from models.explain.interests import Interests, check_summary, template_summary
from pipelines.writers import Writer, WriterOptions, Written, written


class SummariseUsers(Writer):
    """One worker; reads `Interests`."""

    async def write(self, facts: str) -> tuple[str, str]:
        """See `Writer.write`."""
        of = Interests.from_json(facts)
        spare = template_summary(of)
        if not spare:
            return "", "none"
        try:
            text = await self.generator.summarise(of, tenant=self.tenant)
        except GeneratorError:
            return spare, "template"
        return (text, "llm") if check_summary(text, of) else (spare, "template")


def summaries(
    facts: Mapping[str, Interests], options: WriterOptions, *, num_cpus: float = 0.5
) -> Iterator[list[Written]]:
    """Write a summary per user on the Ray this process is connected to; yield batches as they are done."""
    yield from written({user: one.to_json() for user, one in facts.items()}, SummariseUsers, options, num_cpus=num_cpus)
