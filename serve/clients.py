"""Clients of deployments: the only file with `.remote`. Each implements a port over a deployment handle.

Calls to the feature fetcher, the encoder and the retriever are coalesced; the ranker and the explainer get one
call per request. The sender enforces the deadline too: cancelling the awaiting task cancels the call. A replica
that died or lacks the release costs one retry within the deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.explain.explainer import Reason
from models.features import UserFeatures
from models.hosted import ShardQuestion
from models.index_port import Hits
from models.retrieval.query import RetrievalQuery
from serve.batching import Coalescer, Member, Result
from serve.context import StageCall
from serve.errors import DependencyError, OverloadError, RecommendError, ReleaseMissing
from serve.ports import ReasonTask, Scores

T = TypeVar("T")
SEEN_REPLICA_S = 10.0
BatchMember = tuple[StageCall, Any]
BatchReply = tuple[str, list[Any]]
"""What a coalesced method returns: the replica's name, and a result or an error per member."""


async def translated(call: Awaitable[T]) -> T:
    """Await a handle call; Ray's errors become ours. Raises OverloadError, DependencyError or the callee's error."""
    from ray.exceptions import RayError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        return await call
    except BackPressureError as error:
        raise OverloadError("the stage's queue is full") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, RecommendError):
            raise cause from None
        if isinstance(error, RecommendError):
            raise
        raise DependencyError(f"the stage failed with {type(cause).__name__}") from error
    except (RayError, DeploymentUnavailableError) as error:
        raise DependencyError("the stage's replica is gone") from error
    except (RecommendError, StopAsyncIteration, TimeoutError):
        raise
    except Exception as error:
        # In throughput mode a callee's exception arrives as its own class, and gRPC adds errors of its own.
        raise DependencyError(f"the stage failed with {type(error).__name__}") from error


async def with_one_retry(call: Callable[[], Awaitable[T]]) -> T:
    """Run an idempotent call again once when its replica was gone or lacked the release."""
    try:
        return await call()
    except (ReleaseMissing, DependencyError):
        return await call()


class LiveReplicas:
    """Counts the replicas that answered lately, from the names in their replies."""

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least
        self._seen: dict[str, float] = {}

    def saw(self, name: str) -> None:
        """Note an answer of replica `name`."""
        self._seen[name] = time.monotonic()

    def __call__(self) -> int:
        """Return the number of live replicas, at least the configured minimum."""
        now = time.monotonic()
        self._seen = {n: at for n, at in self._seen.items() if now - at < SEEN_REPLICA_S}
        return max(self._at_least, len(self._seen))


class _CoalescedClient(Generic[Member, Result]):
    """Shared by the clients below: one handle method that takes a list of members."""

    def __init__(self, method: Any, *, min_replicas: int, max_waiting: int) -> None:
        self._method = method
        self._live = LiveReplicas(min_replicas)
        self._coalescer: Coalescer[tuple[StageCall, Member], Result] = Coalescer(
            self._send, replicas=self._live, max_waiting=max_waiting
        )

    async def call(self, call: StageCall, member: Member) -> Result:
        """Send one member and return its result, retrying once where that is harmless."""
        started = time.monotonic()

        async def once() -> Result:
            left = call.remaining_ms - (time.monotonic() - started) * 1000.0
            return await self._coalescer.call((call, member), left)

        return await with_one_retry(once)

    async def _send(self, members: list[tuple[tuple[StageCall, Member], float]]) -> Sequence[Result | BaseException]:
        batch = [
            (StageCall(call.tenant, call.release_id, remaining_ms), member) for (call, member), remaining_ms in members
        ]
        name, results = await translated(_cancellable(self._method.remote(batch)))
        self._live.saw(name)
        return list(results)


async def _cancellable(response: Any) -> Any:
    """Await a handle response; cancel the call in the callee when the awaiting task is cancelled."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


class FeatureFetcherClient:
    """`FeatureFetcher` over a handle."""

    def __init__(self, handle: Any, *, min_replicas: int, max_waiting: int) -> None:
        self._client: _CoalescedClient[tuple[str | None, str | None], UserFeatures] = _CoalescedClient(
            handle.fetch_many, min_replicas=min_replicas, max_waiting=max_waiting
        )

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        return await self._client.call(call, (user_id, session_id))


class QueryEncoderClient:
    """`QueryEncoder` over a handle."""

    def __init__(self, handle: Any, *, min_replicas: int, max_waiting: int) -> None:
        self._client: _CoalescedClient[str, npt.NDArray[np.float32]] = _CoalescedClient(
            handle.encode_many, min_replicas=min_replicas, max_waiting=max_waiting
        )

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """See `QueryEncoder.encode`."""
        return await self._client.call(call, text)


class RetrieverClient:
    """`Retriever` over a handle."""

    def __init__(self, handle: Any, *, min_replicas: int, max_waiting: int) -> None:
        self._client: _CoalescedClient[RetrievalQuery, Candidates] = _CoalescedClient(
            handle.retrieve_many, min_replicas=min_replicas, max_waiting=max_waiting
        )

    async def retrieve(self, call: StageCall, query: RetrievalQuery) -> Candidates:
        """See `Retriever.retrieve`."""
        return await self._client.call(call, query)


class IndexShardClient:
    """`IndexShard` over a handle."""

    def __init__(self, handle: Any, *, min_replicas: int, max_waiting: int) -> None:
        self._client: _CoalescedClient[ShardQuestion, Hits] = _CoalescedClient(
            handle.search_many, min_replicas=min_replicas, max_waiting=max_waiting
        )

    async def search(self, call: StageCall, question: ShardQuestion) -> Hits:
        """See `IndexShard.search`."""
        return await self._client.call(call, question)


class RankerClient:
    """`Ranker` over a handle: one call per request."""

    def __init__(self, handle: Any) -> None:
        self._method = handle.score

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """See `Ranker.score`."""

        async def once() -> Scores:
            scores: Scores = await translated(_cancellable(self._method.remote(call, query, candidates)))
            return scores

        return await with_one_retry(once)


class ExplainerClient:
    """`Explainer` over a handle: one streaming call per request."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._method = handle.options(stream=True).explain

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """See `Explainer.explain`. Closing the iterator cancels the call in the replica."""
        stream = self._method.remote(call, task)
        finished = False
        try:
            while True:
                try:
                    reason: Reason = await translated(stream.__anext__())
                except StopAsyncIteration:
                    finished = True
                    return
                yield reason
        finally:
            if not finished:
                stream.cancel()

    async def healthy(self) -> bool:
        """See `Explainer.healthy`; asks one replica."""
        return bool(await translated(_cancellable(self._handle.healthy.remote())))
