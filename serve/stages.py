"""The in-process implementations of the ports: what deployments host and what `placement: inline` uses.

Coroutines here only await: index and model calls go through one bounded executor. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.declared import Declaration
from models.encoder import Encoder
from models.events import Event, session_owner
from models.explain.clean import clean_text
from models.explain.explainer import Reason, ReasonWriter
from models.explain.summary_book import SummaryBook
from models.features import UserFeatures
from models.retrieval.query import RetrievalQuery
from models.store.port import EventStatus, OnlineStore, StoreError, StoreTimeout
from models.store.profiles import Linked, ProfileStore
from serve.context import StageCall
from serve.deadline import Deadline
from serve.errors import DeadlineExceeded, DependencyError, RecommendError
from serve.index_shards import asking
from serve.ports import ReasonTask

BundleOf = Callable[[str, str], ReleaseBundle]


async def _computed(executor: Executor, function: Callable[..., Any], *args: Any) -> Any:
    """Run index or model code in the executor. Whatever it raises is a failed dependency, so that requests degrade."""
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, function, *args)
    except RecommendError:
        raise
    except Exception as error:
        # Only the type is told: a message may hold what a user sent.
        raise DependencyError(f"the stage failed with {type(error).__name__}") from error


class StoreFeatureFetcher:
    """Reads features from the online store, and beside them the user's interests in words where they are kept."""

    def __init__(self, store: OnlineStore, summaries: SummaryBook | None = None) -> None:
        self._store = store
        self._summaries = summaries

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        if self._summaries is None or user_id is None:
            return await self._features(call, user_id, session_id)
        features, summary = await asyncio.gather(
            self._features(call, user_id, session_id), self._summaries.read(call.tenant, user_id)
        )
        return replace(features, summary=summary) if summary else features

    async def _features(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        try:
            session = None if session_id is None else session_owner(session_id)
            return await self._store.fetch(call.tenant, user_id, session, timeout_s=call.remaining_ms / 1000.0)
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


class StoreProfiles:
    """Reads and merges profiles, and keeps declarations, in the online store."""

    def __init__(self, store: ProfileStore, *, read_timeout_s: float = 0.5) -> None:
        self._store = store
        self._read_timeout_s = read_timeout_s

    async def read(self, tenant: str, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `Profiles.read`."""
        session = None if session_id is None else session_owner(session_id)
        try:
            return await self._store.fetch(tenant, user_id, session, timeout_s=self._read_timeout_s)
        except StoreError as error:
            raise DependencyError("the store is unavailable") from error

    async def declare(
        self, tenant: str, user_id: str | None, session_id: str | None, declaration: Declaration, *, now_ms: int
    ) -> None:
        """See `Profiles.declare`."""
        owner = user_id if user_id is not None else session_owner(session_id or "")
        try:
            await self._store.declare(tenant, owner, declaration, now_ms=now_ms)
        except StoreError as error:
            raise DependencyError("the declaration could not be made durable; send it again") from error

    async def link(self, tenant: str, user_id: str, session_id: str, *, now_ms: int) -> Linked:
        """See `Profiles.link`."""
        try:
            return await self._store.link(tenant, user_id, session_owner(session_id), now_ms=now_ms)
        except StoreError as error:
            raise DependencyError("the merge could not be made durable; send it again") from error


class EngineRetriever:
    """Runs the retrieval engine of the pinned release in an executor."""

    def __init__(self, bundle_of: BundleOf, executor: Executor) -> None:
        self._bundle_of = bundle_of
        self._executor = executor

    async def retrieve(self, call: StageCall, query: RetrievalQuery) -> Candidates:
        """See `Retriever.retrieve`."""
        bundle = self._bundle_of(call.tenant, call.release_id)
        found: Candidates = await _computed(
            self._executor, _retrieved, bundle, query, call.tenant, Deadline.after_ms(call.remaining_ms)
        )
        return found


def _retrieved(bundle: ReleaseBundle, query: RetrievalQuery, tenant: str, deadline: Deadline) -> Candidates:
    # Engines know nothing of deadlines; what asks other processes under one reads it from here.
    with asking(tenant, deadline) as asked:
        found = bundle.engine.retrieve(query)
    return replace(found, incomplete=True) if asked.missing else found


class TextQueryEncoder:
    """Embeds query texts in an executor, with one encoder whatever the release."""

    def __init__(self, encoder: Encoder, executor: Executor) -> None:
        self._encoder = encoder
        self._executor = executor

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """See `QueryEncoder.encode`."""
        vectors = await _computed(self._executor, self._encoder.encode, [clean_text(text)])
        return np.asarray(vectors[0], dtype=np.float32)


class ReleaseQueryEncoder:
    """Embeds query texts with the encoder of the release that a call is pinned to, in an executor."""

    def __init__(self, bundle_of: BundleOf, executor: Executor) -> None:
        """`bundle_of` gives bundles whose encoder was loaded before they were served."""
        self._bundle_of = bundle_of
        self._executor = executor

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """See `QueryEncoder.encode`."""
        encoder = self._bundle_of(call.tenant, call.release_id).space.encoder
        return await TextQueryEncoder(encoder, self._executor).encode(call, text)


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

    async def healthy(self) -> bool:
        """See `Explainer.healthy`."""
        return await self._writer.healthy()
