"""The ports of the request path: one small protocol per stage.

Each is implemented three times: by the in-process class (`serve/stages.py`), by the client that wraps a
deployment handle (`serve/clients.py`) and by a fake (`serve/fakes.py`). All are async; all may raise
DeadlineExceeded, DependencyError, OverloadError, ReleaseMissing; none raises for unknown users or items.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.declared import Declaration
from models.events import Event
from models.explain.evidence import Evidence
from models.explain.explainer import Reason
from models.features import UserFeatures
from models.hosted import ShardQuestion
from models.index_port import Hits
from models.retrieval.query import RetrievalQuery
from models.store.port import EventStatus
from models.store.profiles import Linked
from serve.context import StageCall


@dataclass(frozen=True, slots=True)
class Scores:
    """What a ranker returns: float32 of the candidates' length, same order, and what the numbers mean."""

    values: npt.NDArray[np.float32]
    kind: str
    shortened: bool = False
    """Whether a cascade ended after its first ranker, for lack of time or because the second one failed."""


class FeatureFetcher(Protocol):
    """Stage 2: what is known of a user, in one round trip to the store."""

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """Return the merged features of user and session; `known` is False for strangers."""
        ...


class Retriever(Protocol):
    """Stage 3: candidates from all sources, merged and filtered."""

    async def retrieve(self, call: StageCall, query: RetrievalQuery) -> Candidates:
        """Return at most `query.n` candidates, best first; rows refer to the catalog of the pinned release."""
        ...


class IndexShard(Protocol):
    """The rows of the vector index that one host holds for retrievers."""

    async def search(self, call: StageCall, question: ShardQuestion) -> Hits:
        """Return the nearest of the host's rows, best first, ties by row; rows refer to the catalog of the release."""
        ...


class Ranker(Protocol):
    """Stage 4: one score per candidate; it cannot drop or reorder."""

    async def score(self, call: StageCall, query: RetrievalQuery, candidates: Candidates) -> Scores:
        """Return one score per candidate, in the order given; non-finite means no opinion."""
        ...


@dataclass(frozen=True, slots=True)
class ReasonTask:
    """Reasons wanted: one evidence record per shown item, the first being the most urgent."""

    evidence: Sequence[Evidence]
    language: str
    tenant: str
    deadline_ms: float
    allow_llm: bool


class Explainer(Protocol):
    """Stage 5: one reason per evidence record, in the order they are finished."""

    def explain(self, call: StageCall, task: ReasonTask) -> AsyncIterator[Reason]:
        """Yield exactly one Reason per record before `task.deadline_ms` has passed."""
        ...

    async def healthy(self) -> bool:
        """Whether the language model lives and makes progress; without it, templates answer."""
        ...


class QueryEncoder(Protocol):
    """Embeds the text of a search query into the space of the item embeddings of the pinned release."""

    async def encode(self, call: StageCall, text: str) -> npt.NDArray[np.float32]:
        """Return one unit vector, float32[dimension]."""
        ...


class EventSink(Protocol):
    """Takes events and returns only when they are durable."""

    async def append(self, tenant: str, events: Sequence[Event], *, now_ms: int) -> Sequence[EventStatus]:
        """Return one status per event, same order. Raises DependencyError when durability cannot be promised."""
        ...


class Profiles(Protocol):
    """What is stored of a user or a session: read on demand, declared by them, and a session merged into a user."""

    async def read(self, tenant: str, user_id: str | None, session_id: str | None) -> UserFeatures:
        """Return what is stored; `known` is False for strangers. Raises DependencyError."""
        ...

    async def declare(
        self, tenant: str, user_id: str | None, session_id: str | None, declaration: Declaration, *, now_ms: int
    ) -> None:
        """Replace what one of the two declared; durable, and harmless to repeat. Raises DependencyError."""
        ...

    async def link(self, tenant: str, user_id: str, session_id: str, *, now_ms: int) -> Linked:
        """Merge the session into the user and forget it; durable, and harmless to repeat. Raises DependencyError."""
        ...
