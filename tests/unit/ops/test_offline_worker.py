"""A worker of `recommend --users` gives each user the items and scores of a request, ordered by a trained ranker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster import offline
from cluster.config import Settings, load_settings
from cluster.offline import Assignment, OfflineRecommender
from cluster.workspace import Workspace
from models.bundle import ReleaseBundle, load_bundle
from models.catalog import ItemCatalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.rankers.compressed import CompressedRanker
from models.releases import Release, new_release
from models.store.memory import MemoryStore
from pipelines.build import Builder
from pipelines.dataset import Dataset, write_dataset
from pipelines.materialise import materialise
from pipelines.training.settings import TrainingSettings
from pipelines.training.train import train_ranker
from serve.context import RequestContext
from serve.deadline import Deadline
from serve.pipeline import RecommendationPipeline, Slate
from serve.ranking import ModelRanker
from serve.runner import SilentRecorder
from serve.schemas import RecommendRequest
from serve.settings import StageBudget
from serve.stages import EngineRetriever, StoreFeatureFetcher, TextQueryEncoder

USERS = [*(f"u{n}" for n in range(20)), "stranger"]
NOW_MS = 1_700_000_500_000
QUICK = TrainingSettings(
    train_positions=4, validation_positions=2, epochs=2, list_size=30, bootstrap_rounds=100, min_examples=5, lean=0.0
)


class Clock:
    """The clock of a worker, which stands still."""

    def time_ns(self) -> int:
        return NOW_MS * 1_000_000


@dataclass(frozen=True)
class Deployment:
    """A state folder with a release whose ranker was trained, and the data set it was made of."""

    settings: Settings
    release: Release
    dataset: Dataset

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.settings)

    def lists(self, *, k: int) -> list[dict[str, Any]]:
        """Return the rows of all users, by one worker that has the history from the data set."""
        history = str(self.workspace.dataset_folder())
        given = Assignment(self.settings.model_dump(mode="json"), self.release.to_json(), history, k)
        worker = OfflineRecommender(given)
        with closing(worker._loop), worker._pool:  # they end with their process elsewhere
            rows: list[dict[str, Any]] = worker(pa.table({"user": USERS})).to_pylist()
        return rows

    def bundle(self, release: Release) -> ReleaseBundle:
        models = self.settings.models
        return load_bundle(
            self.workspace.artifacts(), release, settings=models.retrieval, encoder="hash", ranking=models.ranker
        )

    def answers(self, release: Release, *, k: int) -> dict[str, Slate]:
        """Return what requests of all users would get: the pipeline of an ingress over a store with the history."""
        bundle, store = self.bundle(release), MemoryStore()
        patient = StageBudget(budget_ms=60_000)
        budgets = dict.fromkeys(("features", "query", "retrieve", "rank"), patient)

        async def run(pool: ThreadPoolExecutor) -> dict[str, Slate]:
            await materialise(store, self.dataset.events)
            pipeline = RecommendationPipeline(
                fetcher=StoreFeatureFetcher(store),
                encoder=TextQueryEncoder(HashEncoder(32), pool),
                retriever=EngineRetriever(lambda *_: bundle, pool),
                ranker=ModelRanker(lambda *_: bundle, pool),
                bundle_of=lambda *_: bundle,
                settings=self.settings.serve.pipeline.model_copy(update=budgets),
                recorder=SilentRecorder(),
            )
            found = {}
            for user in USERS:
                ctx = RequestContext("r", "main", release.release_id, Deadline.after_ms(60_000), NOW_MS)
                found[user] = await pipeline.recommend(ctx, RecommendRequest(user_id=user, k=k))
                assert ctx.degraded == []
            return found

        with ThreadPoolExecutor(1) as pool:
            return asyncio.run(run(pool))


def genre_log(users: int) -> EventLog:
    """Users who take every second item from one genre of their own, so that there is something to learn."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(users):
        own, other = rng.permutation(np.arange(user % 4, 40, 4))[:5], rng.permutation(40)[:5]
        rows += [(f"u{user}", f"i{item:02}") for item in dict.fromkeys(np.stack([own, other], axis=1).ravel().tolist())]
    return EventLog(
        user_ids=np.array([user for user, _ in rows], dtype=object),
        item_ids=np.array([item for _, item in rows], dtype=object),
        types=rng.choice([EventType.rating, EventType.like], len(rows)).astype(np.uint8),
        values=rng.integers(4, 6, len(rows)).astype(np.float32),
        timestamps_ms=(NOW_MS - np.arange(len(rows), 0, -1) * 60_000).astype(np.int64),
    ).sorted_by_time()


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, items_of: Callable[..., Any]) -> Deployment:
    overrides = {
        "cluster.state": tmp_path_factory.mktemp("deployment") / "state",
        "cluster.dataset": "tiny",
        "models.encoder.uri": "hash",
        "models.encoder.dimension": 32,
        "pipelines.train_ranker": False,
    }
    settings = load_settings("local", [f"{name}={value}" for name, value in overrides.items()], environ={})
    workspace, dataset = Workspace(settings), Dataset("tiny", items_of(40), genre_log(users=60))
    write_dataset(dataset, workspace.dataset_folder())
    plain = Builder(
        workspace.artifacts(),
        settings=settings.pipelines,
        retrieval=settings.models.retrieval,
        encoder=lambda: HashEncoder(32),
        encoder_uri="hash",
    ).run(dataset)
    ranker = _trained(workspace, dataset, plain.release, tmp_path_factory.mktemp("ranker"))
    return Deployment(settings, new_release({**plain.release.artifacts, "ranker": ranker}, dataset="tiny"), dataset)


def _trained(workspace: Workspace, dataset: Dataset, release: Release, folder: Path) -> str:
    artifacts = workspace.artifacts()
    catalog = ItemCatalog(artifacts.get(release.artifacts["catalog"]).path)
    embeddings = np.load(artifacts.get(release.artifacts["embeddings"]).path / "embeddings.npy")
    train_ranker(dataset.events, catalog, embeddings, folder, settings=QUICK)
    return artifacts.put("ranker", folder, {})


def test_the_list_of_a_user_has_the_items_and_the_scores_of_a_request(deployment, monkeypatch) -> None:
    monkeypatch.setattr(offline, "time", Clock())
    rows = deployment.lists(k=7)
    assert not any(row["degraded"] for row in rows)
    assert {row["release"] for row in rows} == {deployment.release.release_id}
    asked = deployment.answers(deployment.release, k=7)
    for user, slate in asked.items():
        mine = [row for row in rows if row["user"] == user]
        assert [row["rank"] for row in mine] == [1, 2, 3, 4, 5, 6, 7]
        assert [row["item"] for row in mine] == slate.item_ids
        assert [row["score"] for row in mine] == slate.scores.tolist()
        assert slate.score_kind == "probability"


def test_the_trained_ranker_decides_the_order_of_these_lists(deployment) -> None:
    assert isinstance(deployment.bundle(deployment.release).ranker, CompressedRanker)
    unranked = new_release({k: ref for k, ref in deployment.release.artifacts.items() if k != "ranker"})
    ranked, order = (deployment.answers(release, k=7) for release in (deployment.release, unranked))
    assert sum(ranked[user].item_ids != order[user].item_ids for user in USERS) > 10
