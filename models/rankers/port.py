"""The ranker port: scores in, scores out. A ranker can neither drop nor reorder candidates."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.retrieval.query import RetrievalQuery


class CrossEncoder(Protocol):
    """Scores the candidates of one list for one user, in whatever order they are given.

    Models read each candidate alone; a fused score also reads where the candidate stands among the others of the call
    (columns of `models.rankers.fusion` that are relative to the list). So scores of one call compare with each other,
    the same candidate in another list may get another one, and a list that is split over calls is not the same list.
    """

    score_kind: str
    """`probability` when scores are calibrated to the next action, else `rank_only`."""

    def score(self, query: RetrievalQuery, candidates: Candidates) -> npt.NDArray[np.float32]:
        """Return float32[len(candidates)], same order, higher is better. Non-finite values mean "no opinion".

        Reads the user's features, seed items and `now_ms` of `query`; raises nothing on unknown items.
        Synchronous and CPU- or GPU-bound: callers run it in an executor.
        """
        ...


class RetrievalOrder:
    """The fake and the floor: repeats the retrieval score."""

    score_kind = "rank_only"

    def score(self, query: RetrievalQuery, candidates: Candidates) -> npt.NDArray[np.float32]:
        """Return the merged retrieval scores unchanged."""
        return candidates.scores
