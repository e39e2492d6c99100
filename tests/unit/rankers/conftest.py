from functools import partial

import numpy as np
import pytest

from models.candidates import SCORED_SOURCES, Candidates, Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventType
from models.features import features_from_events
from models.retrieval.query import RetrievalQuery

GENRES = ("drama", "comedy", "thriller", "western")
NOW = 1_700_000_000_000


class Counts:
    """Item statistics by hand, in the order popularity, recent, first_ms."""

    def __init__(self, popularity, recent, first_ms):
        self.popularity, self.recent, self.first_ms = popularity, recent, first_ms


@pytest.fixture
def catalog(tmp_path):
    items = [
        Item(
            f"i{n}",
            f"film {n} {GENRES[n % 4]}",
            text="x" * (n % 3),
            labels={"genre": (GENRES[n % 4], GENRES[(n + 1) % 4])[: 1 + n % 2]},
            numbers={"year": 1950.0 + n} if n % 5 else {},
        )
        for n in range(40)
    ]
    write_catalog(items, tmp_path / "catalog.arrow")
    return ItemCatalog(tmp_path)


@pytest.fixture
def embeddings(catalog):
    return HashEncoder(16).encode([catalog.document(r) for r in range(len(catalog))])


@pytest.fixture
def statistics(catalog):
    rng = np.random.default_rng(1)
    popularity = rng.integers(0, 50, len(catalog)).astype(np.float32)
    return Counts(popularity, popularity * 0.3, NOW - rng.integers(0, 10**10, len(catalog)))


@pytest.fixture
def make_query():
    def make(ids=("i1", "i5", "i9"), **changes):
        n = len(ids)
        user = features_from_events(
            list(ids),
            np.full(n, EventType.rating, np.uint8),
            np.arange(1, n + 1).astype(np.float32),
            NOW - np.arange(n, 0, -1).astype(np.int64) * 60_000,
        )
        return RetrievalQuery(**{"n": 10, "now_ms": NOW, "user": user, **changes})

    return make


@pytest.fixture
def make_candidates():
    def make(rows, *, seed=0):
        rng = np.random.default_rng(seed)
        rows = np.asarray(rows, np.int32)
        n = len(rows)
        scores = np.sort(rng.random(n).astype(np.float32))[::-1].copy()
        return Candidates(
            rows,
            np.full(n, int(Source.sequential | Source.semantic), np.uint16),
            rng.random((n, len(SCORED_SOURCES))).astype(np.float32),
            scores,
        )

    return make


WORDS = "film drama comedy thriller western liked did not like : ; . , x red blue year genre 0 1 2 3 4 5 6 7 8 9"


@pytest.fixture(scope="session")
def save_text_model(tiny_bert):
    """Return what writes a text ranker whose scores differ from pair to pair; its `labels` are 1 unless told."""
    words = [*WORDS.split(), *(f"##{digit}" for digit in range(10))]
    return partial(tiny_bert, words=words, hidden=32, intermediate=64, heads=4, initializer_range=0.5)


@pytest.fixture
def folder(tmp_path, save_text_model):
    return save_text_model(tmp_path / "text")
