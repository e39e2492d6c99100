from pathlib import Path

import numpy as np
import pytest

from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine

ITEMS = 60
DAY_MS = 86_400_000


def make_items(count: int = ITEMS) -> list[Item]:
    """Items i0..: even ones are Comedy, every 20th is Rare, odd ones have no genre; years for all but i1."""
    items = []
    for n in range(count):
        genres = ("Comedy",) if n % 2 == 0 else ()
        genres += ("Rare",) if n % 20 == 0 else ()
        numbers = {} if n == 1 else {"year": 1950.0 + n}
        items.append(Item(f"i{n}", f"Item {n}", labels={"genres": genres} if genres else {}, numbers=numbers))
    return items


def make_log(users: int = 40, length: int = 12, *, count: int = ITEMS, seed: int = 0) -> EventLog:
    """Users walk along neighbouring items, so that i(n+1) tends to follow i(n)."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, count, users)
    items = (start[:, None] + np.arange(length) + rng.integers(0, 2, (users, length))) % count
    times = np.arange(users * length).reshape(users, length) * 60_000 + 10 * DAY_MS
    size = users * length
    return EventLog(
        np.repeat(np.array([f"u{n}" for n in range(users)], object), length),
        np.array([f"i{n}" for n in items.ravel()], object),
        np.full(size, EventType.click, np.uint8),
        np.ones(size, np.float32),
        times.ravel().astype(np.int64),
    ).sorted_by_time()


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    folder: Path = tmp_path_factory.mktemp("catalog")
    write_catalog(make_items(), folder / "catalog.arrow")
    return ItemCatalog(folder)


@pytest.fixture(scope="session")
def log() -> EventLog:
    return make_log()


@pytest.fixture(scope="session")
def embeddings() -> np.ndarray:
    vectors = np.random.default_rng(1).normal(size=(ITEMS, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="session")
def engine(catalog: ItemCatalog, log: EventLog, embeddings: np.ndarray) -> RetrievalEngine:
    behaviour = fit_behaviour(log, catalog, BehaviourSettings(ease_ridge=5.0))
    return RetrievalEngine(catalog, embeddings, FlatIndex(embeddings), behaviour, fit_statistics(log, catalog))
