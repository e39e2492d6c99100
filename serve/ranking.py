"""Stage 4 in process: the ranker of the pinned release, many requests in turns, and the second ranker of a cascade.

What a ranker deployment hosts and what `placement: inline` uses. Knows nothing of Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.rankers.cascade import best_of, blended
from models.retrieval.query import RetrievalQuery
from serve.context import StageCall
from serve.continuous import ContinuousBatcher
from serve.errors import ContractViolation, RecommendError
from serve.ports import Scores

BundleOf = Callable[[str, str], ReleaseBundle]

_FADE = 0.9
"""How the expected time of a second ranker shrinks when it was not asked: a slow moment must not last for ever."""


class ModelRanker:
    """Implements `Ranker` (see `continuous` for the order of requests)."""

    def __init__(self, bundle_of: BundleOf, executor: Executor, **batching: Any) -> None:
        """`batching` are the limits of `ContinuousBatcher`."""
        self._bundle_of = bundle_of
        self.batcher = ContinuousBatcher(executor, **batching)
        self._second_ms = 0.0

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """See `Ranker.score`. Raises ContractViolation when the model breaks the length contract.

        Items so new that this replica has not heard of them get no score for now.
        """
        ends = time.monotonic() + call.remaining_ms / 1000.0
        bundle = self._bundle_of(call.tenant, call.release_id)
        known = candidates.rows < len(bundle.catalog)
        wanted = candidates if known.all() else candidates.take(known)
        found, kind = await self.batcher.score(bundle, query, wanted, call.remaining_ms)
        _checked(len(found), len(wanted))
        scores = await self._refined(bundle, query, wanted, Scores(found, kind), ends)
        if wanted is candidates:
            return scores
        values = np.full(len(candidates), np.nan, np.float32)
        values[known] = scores.values
        return replace(scores, values=values)

    async def _refined(
        self, bundle: ReleaseBundle, query: RetrievalQuery, candidates: Candidates, first: Scores, ends: float
    ) -> Scores:
        """Let the second ranker of a cascade read the best again; without time or without it, the first one's stand."""
        second = getattr(bundle, "second", None)
        if second is None or bundle.ranking is None:
            return first
        of = bundle.ranking.cascade
        if not of.asks(query):
            return first
        best = best_of(first.values, of.candidates)
        if not len(best):
            return first
        began = time.monotonic()
        left_ms = (ends - began) * 1000.0 - of.reserve_ms
        if left_ms < max(of.minimum_ms, self._second_ms):
            self._second_ms *= _FADE
            return replace(first, shortened=True)
        try:
            found, _ = await self.batcher.score(second, query, candidates.take(best), left_ms)
        except ContractViolation:
            raise
        except RecommendError:
            self._second_ms = max(self._second_ms, (time.monotonic() - began) * 1000.0)
            return replace(first, shortened=True)
        self._second_ms = (time.monotonic() - began) * 1000.0
        _checked(len(found), len(best))
        # Dealt out anew, calibrated numbers no longer belong to their items.
        return Scores(blended(first.values, best, found, weight=of.weight), "rank_only")


def _checked(scores: int, candidates: int) -> None:
    if scores != candidates:
        raise ContractViolation(f"ranker returned {scores} scores for {candidates} candidates")
