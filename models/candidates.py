"""Candidates: the columns that travel from retrieval through ranking to the selector.

Columnar because it crosses processes (500 candidates as columns pickle fifty times faster than as objects).
It lives in `models`, not `serve`, since training builds its examples from the very same columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any

import numpy as np
import numpy.typing as npt


class Source(IntFlag):
    """Which retrieval source found a candidate; stored in served records, so append, never renumber."""

    semantic = 1
    collaborative = 2
    sequential = 4
    trending = 8
    repeat = 16
    fresh = 32
    similar = 64
    popular = 128
    given = 256
    neighbours = 512
    cluster = 1024
    declared = 2048


SCORED_SOURCES: tuple[Source, ...] = (
    Source.semantic,
    Source.collaborative,
    Source.sequential,
    Source.trending,
    Source.repeat,
    Source.fresh,
    Source.similar,
    Source.popular,
    Source.neighbours,
    Source.cluster,
    Source.declared,
)
"""Order of the columns of `Candidates.source_scores`."""

# Plain numbers: `&` with a flag makes an object each time, and every shown item asks for its names.
_NAMES = [(int(source), str(source.name)) for source in Source]
COLUMN_OF = {source: at for at, source in enumerate(SCORED_SOURCES)}


def source_names(bits: int) -> list[str]:
    """Return the names of the sources in `bits`, in the order of the enum."""
    return [name for bit, name in _NAMES if bits & bit]


@dataclass(frozen=True, slots=True)
class Candidates:
    """N candidates, distinct by row, in descending order of `scores` when they come from a retriever.

    `rows` int32[N]; `sources` uint16[N] bits of `Source`; `source_scores` float32[N, len(SCORED_SOURCES)],
    0 where a source has no opinion; `scores` float32[N], the merged retrieval score. `incomplete` says that a part of
    the vector index gave no answer.
    """

    rows: npt.NDArray[np.int32]
    sources: npt.NDArray[np.uint16]
    source_scores: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    incomplete: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: npt.NDArray[Any]) -> Candidates:
        """Return the candidates of `index` (positions or a boolean mask), in that order."""
        return replace(
            self,
            rows=self.rows[index],
            sources=self.sources[index],
            source_scores=self.source_scores[index],
            scores=self.scores[index],
        )

    @classmethod
    def empty(cls) -> Candidates:
        """No candidates."""
        width = len(SCORED_SOURCES)
        return cls(
            np.empty(0, np.int32), np.empty(0, np.uint16), np.empty((0, width), np.float32), np.empty(0, np.float32)
        )
