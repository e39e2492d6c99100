"""Asking the hosts of a vector index under the deadline of a request, and answering as one of them.

Retrieval runs in worker threads and blocks there; calls to hosts are coroutines of the replica's event loop. Between
them is `ShardHosts`: the loop never waits for a thread. A host without an answer in time is left out, and candidates
say so; after `FAILURES` in a row it is not asked for a moment: no request waits for it. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from models.bundle import ReleaseBundle
from models.hosted import ShardQuestion
from models.index_port import Hits
from serve.context import StageCall
from serve.deadline import Deadline
from serve.errors import ContractViolation, DependencyError, RecommendError
from serve.ports import IndexShard

SHARE_OF_TIME = 0.5
"""Of what a retrieval has left, hosts get this much: the other sources must still answer when a host does not."""
FAILURES = 3
REST_S = 1.0


@dataclass(slots=True)
class Asked:
    """One retrieval in a worker thread: for whom, until when, and which hosts were left out."""

    tenant: str
    deadline: Deadline
    missing: set[int] = field(default_factory=set)


_ASKED: ContextVar[Asked | None] = ContextVar("asked", default=None)


@contextmanager
def asking(tenant: str, deadline: Deadline) -> Iterator[Asked]:
    """Let what this thread searches within the block be asked for `tenant` and answered before `deadline`."""
    asked = Asked(tenant, deadline)
    token = _ASKED.set(asked)
    try:
        yield asked
    finally:
        _ASKED.reset(token)


class ShardHosts:
    """Implements `AskHosts` over ports, one per host. Made on the event loop that calls them."""

    def __init__(self, hosts: Sequence[IndexShard], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._hosts, self._clock = tuple(hosts), clock
        self._loop = asyncio.get_running_loop()
        self._failed = [0] * len(self._hosts)
        self._rests_until = [0.0] * len(self._hosts)

    def ask(self, release_id: str, questions: Mapping[int, ShardQuestion]) -> Mapping[int, Hits]:
        """Ask all at once and return the answers by host. Blocks its thread; never call it on the event loop.

        Raises ContractViolation outside of `asking`, since nothing says then how long it may take.
        """
        asked = _ASKED.get()
        if asked is None:
            raise ContractViolation("an index spread over hosts was searched without a deadline")
        # Several sources of one retrieval search: a host that hung costs it time once.
        left = {host: question for host, question in questions.items() if host not in asked.missing}
        call = StageCall(asked.tenant, release_id, asked.deadline.remaining_ms() * SHARE_OF_TIME)
        found = asyncio.run_coroutine_threadsafe(self._scatter(call, left), self._loop).result()
        asked.missing |= left.keys() - found.keys()
        return found

    async def _scatter(self, call: StageCall, questions: Mapping[int, ShardQuestion]) -> dict[int, Hits]:
        answers = await asyncio.gather(*(self._one(host, call, question) for host, question in questions.items()))
        return {host: hits for host, hits in zip(questions, answers, strict=True) if hits is not None}

    async def _one(self, host: int, call: StageCall, question: ShardQuestion) -> Hits | None:
        if self._clock() < self._rests_until[host]:
            return None
        try:
            async with asyncio.timeout(call.remaining_ms / 1000.0):
                hits = await self._hosts[host].search(call, question)
        except ContractViolation:
            raise
        except (RecommendError, TimeoutError):
            self._failed[host] += 1
            if self._failed[host] >= FAILURES:
                self._rests_until[host] = self._clock() + REST_S
            return None
        self._failed[host] = 0
        return hits


class ShareSearcher:
    """`IndexShard` over the share of the index that this process holds, in an executor."""

    def __init__(self, bundle_of: Callable[[str, str], ReleaseBundle], executor: Executor) -> None:
        self._bundle_of, self._executor = bundle_of, executor

    async def search(self, call: StageCall, question: ShardQuestion) -> Hits:
        """See `IndexShard.search`."""
        share = self._bundle_of(call.tenant, call.release_id).share
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, share.answer, question)
        except Exception as error:
            # Only the type is told, as in the other stages.
            raise DependencyError(f"the index failed with {type(error).__name__}") from error
