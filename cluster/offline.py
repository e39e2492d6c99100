"""The body of `raycommend recommend --users FILE --out PARQUET`: lists for many users at once, for mail and push.

The very pipeline that answers requests, in actors fed by Ray Data, over the release that is served: features come from
the store where it runs, else from the imported history. Nothing is recorded as served, and no reasons are written.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import Settings
from cluster.console import Pace, say
from cluster.errors import OperatorError
from cluster.publish import current
from cluster.ray_job import job_ray
from cluster.stack import online
from cluster.workspace import Workspace
from models.bundle import ReleaseBundle, load_bundle
from models.candidates import Source
from models.encoder import HashEncoder
from models.events import EventLog
from models.features import ANONYMOUS, UserFeatures, features_from_events
from models.ids import is_valid_id
from models.releases import Release
from pipelines.dataset import read_dataset
from pipelines.embedding.runners import quiet_ray_data
from serve.auth import DEFAULT_TENANT
from serve.context import RequestContext, StageCall
from serve.deadline import Deadline
from serve.deployments.replica import STORE_URL
from serve.pipeline import RecommendationPipeline
from serve.ports import FeatureFetcher
from serve.ranking import ModelRanker
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import PipelineSettings, StageBudget
from serve.stages import EngineRetriever, StoreFeatureFetcher, TextQueryEncoder

_BATCH_USERS = 256
_PATIENCE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker needs; it pickles, and holds no secrets."""

    settings: dict[str, Any]
    release: str
    history: str | None
    """Folder of the data set whose events are the users' history; None reads the store."""
    k: int


def recommend_users(settings: Settings, users: Path, out: Path, *, k: int) -> dict[str, Any]:
    """Write the lists of the users in a file (one id a line) to a Parquet file: user, rank, item, score, sources.

    Returns how many users and rows, and how many lists were degraded. Raises OperatorError for a file without users,
    an id that is none, or where no release is there. Effect: `out` appears whole or not at all.
    """
    ids = _read_users(users)
    workspace = Workspace(settings)
    reachable = online(settings)
    release = (current(settings)[0] if reachable else None) or workspace.newest_release()
    if release is None:
        raise OperatorError("there is no release yet: run `raycommend import` and `raycommend build` first")
    history = None if reachable else str(workspace.dataset_folder(str(release.notes["dataset"])))
    given = Assignment(settings.model_dump(mode="json"), release.to_json(), history, k)
    with job_ray(settings, say=say), Pace(say) as pace:
        counts = _run(given, ids, out, workers=settings.pipelines.embedding.workers, pace=pace)
    return {"release": release.release_id, "users": len(ids), **counts}


def _run(given: Assignment, ids: list[str], out: Path, *, workers: int, pace: Pace) -> dict[str, int]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    import ray

    quiet_ray_data()
    blocks = -(-len(ids) // _BATCH_USERS)
    data = ray.data.from_items([{"user": user} for user in ids], override_num_blocks=blocks).map_batches(
        OfflineRecommender,
        fn_constructor_args=(given,),
        batch_size=_BATCH_USERS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, blocks)),
        num_cpus=0.5,
    )
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    counts = {"rows": 0, "degraded": 0}
    done: set[str] = set()
    try:
        with pq.ParquetWriter(draft, _schema()) as writer:
            for batch in data.iter_batches(batch_format="pyarrow", batch_size=None):
                table = pa.table(batch).cast(_schema())
                writer.write_table(table)
                counts["rows"] += len(table)
                firsts = table.filter(pc.equal(table["rank"], 1))
                counts["degraded"] += int(pc.sum(firsts["degraded"]).as_py() or 0)
                done |= set(table["user"].to_pylist())
                pace.report("recommend", len(done), len(ids))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return counts


class OfflineRecommender:
    """The pipeline with its stages in one actor."""

    def __init__(self, given: Assignment) -> None:
        settings = Settings.model_validate(given.settings)
        self._k, self._loop, self._pool = given.k, asyncio.new_event_loop(), ThreadPoolExecutor(1)
        release = Release.from_json(given.release)
        artifacts = Workspace(settings).artifacts()
        bundle = load_bundle(
            artifacts,
            release,
            settings=settings.models.retrieval,
            encoder=settings.models.encoder.uri,
            ranking=settings.models.ranker,
        )
        fetcher, self._bundle = self._loop.run_until_complete(_opened(settings, given, bundle))

        def bundle_of(tenant: str, release_id: str) -> ReleaseBundle:
            return self._bundle

        self._pipeline = RecommendationPipeline(
            fetcher=fetcher,
            encoder=TextQueryEncoder(HashEncoder(), self._pool),  # there is no query to embed
            retriever=EngineRetriever(bundle_of, self._pool),
            ranker=ModelRanker(bundle_of, self._pool),
            bundle_of=bundle_of,
            settings=_patient(settings.serve.pipeline),
            recorder=SilentRecorder(),
        )

    def __call__(self, batch: Any) -> Any:
        """Return the lists of a batch of users, one row per item."""
        import pyarrow as pa

        rows: dict[str, list[Any]] = {name: [] for name in _schema().names}
        for user in batch["user"].to_pylist():
            self._loop.run_until_complete(self._add(str(user), rows))
        return pa.table(rows, schema=_schema())

    async def _add(self, user: str, rows: dict[str, list[Any]]) -> None:
        ctx = RequestContext(
            "offline",
            DEFAULT_TENANT,
            self._bundle.release_id,
            Deadline.after_ms(_PATIENCE_MS),
            time.time_ns() // 1_000_000,
        )
        slate = await self._pipeline.recommend(ctx, RecommendRequest(user_id=user, k=self._k))
        for rank, (item, score, bits) in enumerate(
            zip(slate.item_ids, slate.scores, slate.chosen.sources, strict=True), start=1
        ):
            names = [source.name for source in Source if int(bits) & int(source)]
            values = (user, rank, item, float(score), names, bool(ctx.degraded), self._bundle.release_id)
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)


class HistoryFetcher:
    """A `FeatureFetcher` over an imported history, for deployments whose store does not run."""

    def __init__(self, events: EventLog) -> None:
        order = np.argsort(events.user_ids.astype(str), kind="stable")
        self._events = events.take(order)
        self._users = self._events.user_ids.astype(str)

    async def fetch(self, call: StageCall, user_id: str | None, session_id: str | None) -> UserFeatures:
        """See `FeatureFetcher.fetch`."""
        if user_id is None:
            return ANONYMOUS
        low, high = (int(np.searchsorted(self._users, user_id, side)) for side in ("left", "right"))  # type: ignore[call-overload]
        log, mine = self._events, slice(low, high)
        return features_from_events(
            log.item_ids[mine].tolist(), log.types[mine], log.values[mine], log.timestamps_ms[mine]
        )


async def _opened(settings: Settings, given: Assignment, bundle: ReleaseBundle) -> tuple[FeatureFetcher, ReleaseBundle]:
    """Return where features come from, and the bundle with the items that changed since, where a store says so."""
    if given.history is not None:
        return HistoryFetcher(read_dataset(Path(given.history)).events), bundle
    from models.items.log import RedisItemLog
    from models.store.profiles import RedisProfiles
    from serve.live_items import ItemFollower

    url, cluster = os.environ[STORE_URL], settings.cluster.store.cluster
    log = RedisItemLog(url, cluster=cluster)
    grown = await ItemFollower(log, warm=lambda found: found.engine).caught_up(DEFAULT_TENANT, bundle)
    await log.close()
    return StoreFeatureFetcher(RedisProfiles(url, cluster=cluster, write_timeout_s=10.0)), grown


def _patient(of: PipelineSettings) -> PipelineSettings:
    """Return the tunables with budgets for work that nobody waits for."""
    budget = StageBudget(budget_ms=_PATIENCE_MS / 5, minimum_ms=1)
    return of.model_copy(update=dict.fromkeys(("features", "query", "retrieve", "rank"), budget))


def _read_users(file: Path) -> list[str]:
    try:
        ids = list(
            dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        )
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{file}: not a readable list of users ({type(error).__name__})") from error
    wrong = _first_wrong(ids)
    if wrong is not None or not ids:
        raise OperatorError(f"{file}: " + (f"line {wrong} is no user id" if ids else "no users"))
    return ids


def _first_wrong(ids: Sequence[str]) -> int | None:
    return next((number for number, user in enumerate(ids, start=1) if not is_valid_id(user)), None)


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("user", pa.string()),
            ("rank", pa.int32()),
            ("item", pa.string()),
            ("score", pa.float32()),
            ("sources", pa.list_(pa.string())),
            ("degraded", pa.bool_()),
            ("release", pa.string()),
        ]
    )
