"""The in-process implementations of the ports: what deployments host and what `placement: inline` uses.

Coroutines here only await: index and model calls go through one bounded executor. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.encoder import Encoder
from models.events import Event
from models.explain.clean import clean_text
from models.explain.explainer import Reason, ReasonWriter
from models.features import UserFeatures
from models.retrieval.query import RetrievalQuery
from models.store.port import EventStatus, OnlineStore, StoreError, StoreTimeout
from serve.context import StageCall
from serve.errors import ContractViolation, DeadlineExceeded, DependencyError
from serve.ports import ReasonTask, Scores

BundleOf = Callable[[str, str], ReleaseBundle]


class StoreFeatureFetcher:
    """Reads features from the online store."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        try:
            return await self._store.fetch(call.tenant, user_id, session_id, timeout_s=call.remaining_ms / 1000.0)
        except StoreTimeout as error:
            raise DeadlineExceeded("the store did not answer in time") from error
        except StoreError as error:
            raise DependencyError("the store is unavailable") from error


class StoreEventSink:
    """Appends events to the online store."""

    def __init__(self, store: OnlineStore) -> None:
        self._store = store

    async def append(self, tenant: str, events: Sequence[Event], *, now_ms: int) -> Sequence[EventStatus]:
        """See `EventSink.append`."""
        try:
            return await self._store.append(tenant, events, now_ms=now_ms)
        except StoreError as error:
            raise DependencyError("events could not be made durable; send them again") from error


class EngineRetriever:
    """Runs the retrieval engine of the pinned release in an executor."""

    def __init__(self, bundle_of: BundleOf, executor: Executor) -> None:
        self._bundle_of = bundle_of
        self._executor = executor

    async def retrieve(self, call: StageCall, query: RetrievalQuery) -> Candidates:
        """See `Retriever.retrieve`."""
        bundle = self._bundle_of(call.tenant, call.release_id)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, bundle.engine.retrieve, query)


class ModelRanker:
    """Runs the ranker of the pinned release in an executor."""

    def __init__(self, bundle_of: BundleOf, executor: Executor) -> None:
        self._bundle_of = bundle_of
        self._executor = executor

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """See `Ranker.score`. Raises ContractViolation when the model breaks the length contract."""
        ranker = self._bundle_of(call.tenant, call.release_id).ranker
        loop = asyncio.get_running_loop()
        values = await loop.run_in_executor(self._executor, ranker.score, query, candidates)
        if len(values) != len(candidates):
            raise ContractViolation(f"ranker returned {len(values)} scores for {len(candidates)} candidates")
        return Scores(values, ranker.score_kind)


class TextQueryEncoder:
    """Embeds query texts in an executor."""

    def __init__(self, encoder: Encoder, executor: Executor) -> None:
        self._encoder = encoder
        self._executor = executor

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """See `QueryEncoder.encode`."""
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self._executor, self._encoder.encode, [clean_text(text)])
        return np.asarray(vectors[0], dtype=np.float32)


class LocalExplainer:
    """Writes reasons with the generator of this process."""

    def __init__(self, writer: ReasonWriter) -> None:
        self._writer = writer

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """See `Explainer.explain`."""
        async for reason in self._writer.write(
            list(enumerate(task.evidence)),
            language=task.language,
            tenant=task.tenant,
            deadline_s=task.deadline_ms / 1000.0,
            allow_llm=task.allow_llm,
        ):
            yield reason
