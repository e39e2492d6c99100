"""What may be said about the current best items of the most active users: evidence through the real pipeline.

The same pipeline as requests run, in process, over a release and the imported events. Called by `explain --warm`, which
fills the reason cache with it, and by the `explain` benchmark, which measures reasons for real users.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.workspace import Workspace
from models.bundle import ReleaseBundle, load_bundle
from models.encoder import HashEncoder
from models.events import EventLog
from models.explain.evidence import Evidence
from models.features import ANONYMOUS, UserFeatures, features_from_events
from pipelines.dataset import Dataset
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.evidence import slate_evidence
from serve.pipeline import RecommendationPipeline
from serve.ranking import ModelRanker
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import StageBudget
from serve.stages import EngineRetriever, TextQueryEncoder

_PATIENCE_MS = 60_000
Done = Callable[[int, int], None]
"""Told (users done, users in all)."""


@dataclass(frozen=True, slots=True)
class UserRecord:
    """One item of one user's current list, best first, and what may be said about it."""

    user_id: str
    item_id: str
    evidence: Evidence


def latest_release(settings: Settings) -> tuple[ReleaseBundle, Dataset]:
    """Return the newest release of the state folder and the data set it was built from. Raises OperatorError."""
    workspace = Workspace(settings)
    release = workspace.releases().latest()
    if release is None:
        raise OperatorError("there is no release yet: run `raycommend import` and `raycommend build` first")
    bundle = load_bundle(workspace.artifacts(), release, settings=settings.models.retrieval)
    return bundle, workspace.dataset(str(release.notes["dataset"]))


def most_active(events: EventLog, users: int) -> list[str]:
    """Return the ids of the users with the most events; ties by id."""
    counts = Counter(events.user_ids.tolist())
    return [user for user, _ in sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:users]]


def records_of(
    settings: Settings,
    bundle: ReleaseBundle,
    events: EventLog,
    user_ids: list[str],
    *,
    k: int,
    done: Done = lambda at, of: None,
) -> Iterator[UserRecord]:
    """Yield the records of every user's `k` best items, user by user.

    A user's features are those of the imported events. Raises OperatorError when a list was degraded.
    """
    features = features_of(events, user_ids)
    fetcher = _LogFeatures(features)
    patient = StageBudget(budget_ms=_PATIENCE_MS)
    stages = {stage: patient for stage in ("features", "query", "retrieve", "rank")}
    with ThreadPoolExecutor(max_workers=1) as pool, asyncio.Runner() as runner:
        pipeline = RecommendationPipeline(
            fetcher=fetcher,
            encoder=TextQueryEncoder(HashEncoder(), pool),  # nobody asks by text here
            retriever=EngineRetriever(lambda tenant, release: bundle, pool),
            ranker=ModelRanker(lambda tenant, release: bundle, pool),
            bundle_of=lambda tenant, release: bundle,
            settings=settings.serve.pipeline.model_copy(update=stages),
            recorder=SilentRecorder(),
        )
        now_ms = int(events.timestamps_ms[-1]) + 1 if len(events) else 0
        for at, user_id in enumerate(user_ids):
            ctx = RequestContext("records", "main", bundle.release_id, Deadline.after_ms(_PATIENCE_MS), now_ms)
            slate = runner.run(pipeline.recommend(ctx, RecommendRequest(user_id=user_id, k=k)))
            if ctx.degraded:
                raise OperatorError(
                    f"the release gives degraded lists ({', '.join(ctx.degraded)}): run `raycommend build`"
                )
            for item_id, evidence in zip(slate.item_ids, slate_evidence(bundle, slate), strict=True):
                yield UserRecord(user_id, item_id, evidence)
            done(at + 1, len(user_ids))


def features_of(events: EventLog, user_ids: list[str]) -> dict[str, UserFeatures]:
    """Return the features of these users as the online store would give them after the imported events."""
    wanted = set(user_ids)
    rows: dict[str, list[int]] = {user: [] for user in wanted}
    for at, user in enumerate(events.user_ids.tolist()):
        if user in wanted:
            rows[user].append(at)
    found = {}
    for user, own in rows.items():
        mine = events.take(np.array(own, np.int64))
        found[user] = features_from_events(list(mine.item_ids), mine.types, mine.values, mine.timestamps_ms)
    return found


@dataclass(frozen=True, slots=True)
class _LogFeatures:
    """A `FeatureFetcher` over features that were built from an event log."""

    users: Mapping[str, UserFeatures]

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        return self.users.get(user_id or "", ANONYMOUS)
