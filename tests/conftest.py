"""One tiny release, built once for the whole run by the real builder: what tests of the request path serve from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.catalog import Item
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.releases import Release
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings

GENRES = ("Drama", "Comedy", "Thriller", "Western")
NOW_MS = 1_700_000_000_000
ITEMS = 40


def make_items(count: int = ITEMS) -> list[Item]:
    return [
        Item(
            f"i{n:02}",
            f"Film {n} {GENRES[n % 4].lower()}",
            text="a tale of water" if n % 3 else "",
            labels={"genre": (GENRES[n % 4], GENRES[(n + 1) % 4])[: 1 + n % 2]},
            numbers={"year": 1950.0 + n} if n % 5 else {},
        )
        for n in range(count)
    ]


def make_log(users: int = 20, each: int = 8, items: int = ITEMS, seed: int = 3) -> EventLog:
    rng = np.random.default_rng(seed)
    rows = [(f"u{u}", f"i{i:02}") for u in range(users) for i in rng.choice(items, each, replace=False)]
    times = NOW_MS - rng.integers(1, 10**9, len(rows))
    return EventLog(
        user_ids=np.array([u for u, _ in rows], dtype=object),
        item_ids=np.array([i for _, i in rows], dtype=object),
        types=np.full(len(rows), EventType.rating, np.uint8),
        values=rng.integers(1, 6, len(rows)).astype(np.float32),
        timestamps_ms=times.astype(np.int64),
    ).sorted_by_time()


@dataclass(frozen=True)
class TinyRelease:
    """The artifacts, the release and its bundle."""

    artifacts: ArtifactStore
    release: Release
    bundle: ReleaseBundle
    dataset: Dataset

    def bundle_of(self, tenant: str, release_id: str) -> ReleaseBundle:
        return self.bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    artifacts = ArtifactStore(str(tmp_path_factory.mktemp("tiny")), cache=tmp_path_factory.mktemp("tiny-cache"))
    dataset = Dataset("tiny", make_items(), make_log())
    builder = Builder(
        artifacts,
        settings=PipelinesSettings(train_ranker=False),
        retrieval=RetrievalSettings(),
        encoder=lambda: HashEncoder(32),
        encoder_uri="hash",
    )
    release = builder.run(dataset).release
    return TinyRelease(artifacts, release, load_bundle(artifacts, release, settings=RetrievalSettings()), dataset)


@pytest.fixture(scope="session")
def items_of() -> Callable[[int], list[Item]]:
    return make_items


@pytest.fixture(scope="session")
def log_of() -> Callable[..., EventLog]:
    return make_log


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"
