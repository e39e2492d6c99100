"""Fakes of every port of the request path, shipped beside the ports: deterministic, without models, stores or Ray.

Each takes a `Trouble` that a test switches on: raise an error, or never answer. `LocalHandle` stands in for a
deployment handle, so that the clients run without a cluster. Called by tests; knows nothing of them.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models.bundle import ReleaseBundle
from models.candidates import Candidates
from models.declared import Declaration
from models.encoder import HashEncoder
from models.events import Event, session_owner
from models.explain.explainer import Reason
from models.features import ANONYMOUS, RECENT_EVENTS, UserFeatures
from models.hosted import HostShare, ShardQuestion
from models.index_port import Hits
from models.retrieval.query import RetrievalQuery
from models.store.checks import merge_features
from models.store.port import EventStatus
from models.store.profiles import Linked
from serve.context import StageCall
from serve.metrics import ServeMetrics
from serve.popular import popular_candidates
from serve.ports import ReasonTask, Scores
from serve.runner import Outcome
from serve.trouble import Trouble

BundleOf = Callable[[str, str], ReleaseBundle]
Score = Callable[[RetrievalQuery, Candidates], npt.NDArray[np.float32]]


class FakeFeatureFetcher:
    """`FeatureFetcher` over two mappings, by user and by session id."""

    def __init__(
        self,
        users: Mapping[str, UserFeatures] | None = None,
        sessions: Mapping[str, UserFeatures] | None = None,
    ) -> None:
        self.users = dict(users or {})
        self.sessions = dict(sessions or {})
        self.trouble = Trouble()

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        await self.trouble.meet()
        owners = ((self.users, user_id), (self.sessions, session_id))
        return merge_features(*(held.get(at or "", ANONYMOUS) for held, at in owners), limit=RECENT_EVENTS)


class FakeRetriever:
    """`Retriever` that knows popularity only; obeys every filter. `queries` lists what was asked."""

    def __init__(self, bundle_of: BundleOf) -> None:
        self._bundle_of = bundle_of
        self.queries: list[RetrievalQuery] = []
        self.trouble = Trouble()

    async def retrieve(self, call: StageCall, query: RetrievalQuery) -> Candidates:
        """See `Retriever.retrieve`."""
        self.queries.append(query)
        await self.trouble.meet()
        return popular_candidates(self._bundle_of(call.tenant, call.release_id), query)


class FakeIndexShard:
    """`IndexShard` over a share of an index in this process, the same for every release."""

    def __init__(self, share: HostShare) -> None:
        self._share = share
        self.trouble = Trouble()

    async def search(self, call: StageCall, question: ShardQuestion) -> Hits:
        """See `IndexShard.search`."""
        await self.trouble.meet()
        return self._share.answer(question)


class FakeRanker:
    """`Ranker` that applies a function; by default it turns retrieval order upside down."""

    def __init__(self, score: Score | None = None, *, kind: str = "probability", shortened: bool = False) -> None:
        self._score: Score = score or (lambda _, candidates: -candidates.scores)
        self._kind, self._shortened = kind, shortened
        self.trouble = Trouble()

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """See `Ranker.score`."""
        await self.trouble.meet()
        return Scores(np.asarray(self._score(query, candidates), dtype=np.float32), self._kind, self._shortened)


class FakeExplainer:
    """`Explainer` that finishes the last slot first. After `stops_after` reasons the trouble begins."""

    def __init__(self, *, stops_after: int = 0) -> None:
        self._stops_after = stops_after
        self.tasks: list[ReasonTask] = []
        self.closed = 0
        self.lives = True
        self.trouble = Trouble()

    async def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """See `Explainer.explain`."""
        self.tasks.append(task)
        try:
            for count, slot in enumerate(reversed(range(len(task.evidence)))):
                if count == self._stops_after:
                    await self.trouble.meet()
                text = f"Because of {task.evidence[slot].item or 'you'}."
                yield Reason(slot, text, "llm" if task.allow_llm else "cache", task.evidence[slot])
        finally:
            self.closed += 1

    async def healthy(self) -> bool:
        """See `Explainer.healthy`."""
        await self.trouble.meet()
        return self.lives


class FakeQueryEncoder:
    """`QueryEncoder` over hashed words."""

    def __init__(self, dimension: int = 32) -> None:
        self._encoder = HashEncoder(dimension)
        self.trouble = Trouble()

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """See `QueryEncoder.encode`."""
        await self.trouble.meet()
        return np.asarray(self._encoder.encode([text])[0], dtype=np.float32)


class FakeEventSink:
    """`EventSink` that keeps what it was given; `fails` names event ids that cannot be made durable."""

    def __init__(self, *, fails: frozenset[str] = frozenset()) -> None:
        self._fails = fails
        self.kept: dict[tuple[str, str, str], Event] = {}
        self.trouble = Trouble()

    async def append(self, tenant: str, events: Sequence[Event], *, now_ms: int) -> Sequence[EventStatus]:
        """See `EventSink.append`."""
        await self.trouble.meet()
        return [self._keep(tenant, event) for event in events]

    def _keep(self, tenant: str, event: Event) -> EventStatus:
        key = (tenant, event.owner, event.event_id)
        if event.event_id in self._fails:
            return EventStatus.failed
        if key in self.kept:
            return EventStatus.duplicate
        self.kept[key] = event
        return EventStatus.accepted

    def of_user(self, user_id: str) -> list[Event]:
        """Return the events kept for a user, in order of arrival."""
        return [e for e in self.kept.values() if e.owner == user_id]

    def of_session(self, session_id: str) -> list[Event]:
        """Return the events kept for an anonymous session, in order of arrival."""
        return self.of_user(session_owner(session_id))


class FakeProfiles:
    """`Profiles` over two mappings of (tenant, id) to features."""

    def __init__(self) -> None:
        self.users: dict[tuple[str, str], UserFeatures] = {}
        self.sessions: dict[tuple[str, str], UserFeatures] = {}
        self.trouble = Trouble()

    async def read(self, tenant: str, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `Profiles.read`."""
        await self.trouble.meet()
        owners = ((self.users, user_id), (self.sessions, session_id))
        return merge_features(*(held.get((tenant, at or ""), ANONYMOUS) for held, at in owners), limit=RECENT_EVENTS)

    async def declare(
        self, tenant: str, user_id: str | None, session_id: str | None, declaration: Declaration, *, now_ms: int
    ) -> None:
        """See `Profiles.declare`."""
        await self.trouble.meet()
        held = self.sessions if user_id is None else self.users
        user = held.get((tenant, user_id or session_id or ""), ANONYMOUS)
        held[tenant, user_id or session_id or ""] = replace(user, declared=declaration or None)

    async def link(self, tenant: str, user_id: str, session_id: str, *, now_ms: int) -> Linked:
        """See `Profiles.link`."""
        await self.trouble.meet()
        if (session := self.sessions.pop((tenant, session_id), None)) is not None:
            user = self.users.get((tenant, user_id), ANONYMOUS)
            self.users[tenant, user_id] = merge_features(user, session, limit=RECENT_EVENTS)
        return Linked(False, 0) if session is None else Linked(True, len(session))


class SilentMetrics(ServeMetrics):
    """`ServeMetrics` that remembers in lists and never imports Ray."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, Outcome, float]] = []
        self.answers: list[tuple[str, str]] = []
        self.reasons_for_degrading: list[str] = []
        self.refusals: list[int] = []
        self.events: dict[str, int] = {}
        self.reason_sources: list[str] = []
        self.cache_outcomes: dict[str, int] = {}
        self.records_dropped = 0
        self.lag_s = 0.0
        self.most_in_flight = 0
        self.unknown: dict[str, int] = {}

    def stage(self, name: str, outcome: Outcome, milliseconds: float) -> None:
        """See `StageRecorder.stage`."""
        self.stages.append((name, outcome, milliseconds))

    def answer(self, route: str, level: str, milliseconds: float) -> None:
        """See `ServeMetrics.answer`."""
        self.answers.append((route, level))

    def degraded(self, reason: str) -> None:
        """See `ServeMetrics.degraded`."""
        self.reasons_for_degrading.append(reason)

    def refused(self, status: int) -> None:
        """See `ServeMetrics.refused`."""
        self.refusals.append(status)

    def event(self, status: str, count: int) -> None:
        """See `ServeMetrics.event`."""
        self.events[status] = self.events.get(status, 0) + count

    def reason(self, source: str) -> None:
        """See `ServeMetrics.reason`."""
        self.reason_sources.append(source)

    def reason_cache(self, outcome: str, count: int) -> None:
        """See `ServeMetrics.reason_cache`."""
        self.cache_outcomes[outcome] = self.cache_outcomes.get(outcome, 0) + count

    def record_dropped(self) -> None:
        """See `ServeMetrics.record_dropped`."""
        self.records_dropped += 1

    def loop_lag(self, seconds: float) -> None:
        """See `ServeMetrics.loop_lag`."""
        self.lag_s = seconds

    def in_flight(self, count: int) -> None:
        """See `ServeMetrics.in_flight`."""
        self.most_in_flight = max(self.most_in_flight, count)

    def unknown_items(self, tenant: str, count: int) -> None:
        """See `ServeMetrics.unknown_items`."""
        self.unknown[tenant] = count


class LocalHandle:
    """A deployment handle over an object of this process.

    Arguments, results and errors are pickled on their way, as between processes. `cancelled` counts calls that the
    caller cancelled.
    """

    def __init__(self, target: Any, *, stream: bool = False) -> None:
        self._target = target
        self._stream = stream
        self.journal = Journal()

    def options(self, *, stream: bool) -> LocalHandle:
        """Return the same handle for streaming methods."""
        handle = LocalHandle(self._target, stream=stream)
        handle.journal = self.journal
        return handle

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(getattr(self._target, name), stream=self._stream, journal=self.journal)


@dataclass(slots=True)
class Journal:
    """What happened to the calls of a `LocalHandle`."""

    calls: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class _Method:
    run: Callable[..., Any]
    stream: bool
    journal: Journal

    def remote(self, *args: Any) -> Any:
        self.journal.calls += 1
        travelled = pickle.loads(pickle.dumps(args))
        if self.stream:
            return _Stream(self.run(*travelled), self.journal)
        return _Response(asyncio.ensure_future(_answered(self.run(*travelled))), self.journal)


async def _answered(answer: Any) -> Any:
    try:
        return pickle.loads(pickle.dumps(await answer))
    except Exception as error:
        raise pickle.loads(pickle.dumps(error)) from None


@dataclass(frozen=True, slots=True)
class _Response:
    task: asyncio.Future[Any]
    journal: Journal

    def __await__(self) -> Generator[Any, None, Any]:
        return self.task.__await__()

    def cancel(self) -> None:
        self.journal.cancelled += 1
        self.task.cancel()


@dataclass(slots=True)
class _Stream:
    items: Any
    journal: Journal
    ended: bool = field(default=False)

    async def __anext__(self) -> Any:
        if self.ended:
            raise StopAsyncIteration
        return pickle.loads(pickle.dumps(await self.items.__anext__()))

    def cancel(self) -> None:
        self.journal.cancelled += 1
        self.ended = True
