"""The second ranker of a cascade: the text ranker behind the compressed one, asked about the best few.

Made by `models.bundle` where settings ask for one and the release has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from models.rankers.port import CrossEncoder

if TYPE_CHECKING:
    from models.bundle import ReleaseBundle

SECOND_RANKER = "text_ranker"
"""Kind of the artifact that holds it."""


@dataclass(frozen=True, eq=False)
class SecondRanker:
    """The second ranker of one bundle."""

    bundle: ReleaseBundle

    @cached_property
    def ranker(self) -> CrossEncoder:
        """The ranker; loaded when it is first read."""
        from models.rankers.load import load_ranker

        of = self.bundle
        if of.alone is not None and of.alone.second is not None:
            return of.alone.second.ranker.over(of.catalog, of.embeddings, of.statistics)  # type: ignore[attr-defined,no-any-return]
        compute = of.ranking.compute if of.ranking else None
        parts = (of.folders[SECOND_RANKER], of.catalog, of.embeddings, of.statistics)
        return load_ranker(*parts, layout=of.layout, compute=compute, choices=of.node)
