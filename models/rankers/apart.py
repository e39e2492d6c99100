"""Rankers whose requests can be taken apart, so that pairs of several requests are computed together and in turns.

`TextRanker` is one: it reads every pair alone. Any other ranker is used whole, a request at a time (`divisible`). Knows
nothing of deadlines or queues. Called by whoever batches (`serve.continuous`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.rankers.port import CrossEncoder
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]


class ScoringTask(Protocol):
    """One request under way."""

    @property
    def left(self) -> int:
        """Tokens that are still to be computed; 0 when `scores` may be asked."""
        ...

    def scores(self) -> Floats:
        """Return what `CrossEncoder.score` returns."""
        ...


class DivisibleRanker(Protocol):
    """A cross-encoder that computes requests in parts. Synchronous; threads may advance different tasks at once."""

    score_kind: str

    def take_apart(self, query: RetrievalQuery, candidates: Candidates) -> ScoringTask:
        """Return the request as a task of this ranker; nothing is computed yet."""
        ...

    def advance(self, tasks: Sequence[Any], *, tokens: int) -> None:
        """Compute about `tokens` tokens of `tasks`, those of the first one first, and at least one pair.

        A score does not depend on what else is computed with it. Tasks are of this ranker and in one thread only.
        """
        ...


class _WholeTask:
    """A request that is computed in one piece."""

    def __init__(self, query: RetrievalQuery, candidates: Candidates) -> None:
        self.query, self.candidates = query, candidates
        self.found: Floats | None = None

    @property
    def left(self) -> int:
        """One piece, whatever its size."""
        return int(self.found is None)

    def scores(self) -> Floats:
        """See `ScoringTask.scores`."""
        assert self.found is not None
        return self.found


class WholeRequests:
    """Implements `DivisibleRanker` for a ranker that computes whole requests, each answered as soon as it is done."""

    def __init__(self, ranker: CrossEncoder) -> None:
        self._ranker, self.score_kind = ranker, ranker.score_kind

    def take_apart(self, query: RetrievalQuery, candidates: Candidates) -> _WholeTask:
        """See `DivisibleRanker.take_apart`."""
        return _WholeTask(query, candidates)

    def advance(self, tasks: Sequence[_WholeTask], *, tokens: int) -> None:
        """Compute the first task."""
        first = tasks[0]
        first.found = self._ranker.score(first.query, first.candidates)


def divisible(ranker: CrossEncoder) -> DivisibleRanker:
    """Return `ranker` itself where it takes requests apart, else a wrapper that computes them whole."""
    # Asked by its methods: a runtime check of the protocol would read every property of it.
    return ranker if hasattr(ranker, "take_apart") else WholeRequests(ranker)  # type: ignore[return-value]
