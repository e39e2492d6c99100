import numpy as np
import pytest

from models.catalog import Item, ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType

HOUR_MS = 3_600_000


@pytest.fixture
def make_catalog(tmp_path):
    def make(n, *, attributes=True):
        items = [
            Item(
                f"i{k}",
                f"film {k}",
                labels={"genre": (f"g{k % 5}",)} if attributes else {},
                numbers={"year": 1980.0 + k % 30} if attributes else {},
            )
            for k in range(n)
        ]
        write_catalog(items, tmp_path / "catalog.arrow")
        catalog = ItemCatalog(tmp_path)
        return catalog, HashEncoder(16).encode([catalog.document(r) for r in range(n)])

    return make


def log_of(rows):
    """Rows of (user, item, hour)."""
    return EventLog(
        np.array([r[0] for r in rows], object),
        np.array([r[1] for r in rows], object),
        np.full(len(rows), EventType.rating, np.uint8),
        np.full(len(rows), 4.0, np.float32),
        np.array([r[2] * HOUR_MS for r in rows], np.int64),
    ).sorted_by_time()


@pytest.fixture
def make_log():
    return log_of


@pytest.fixture
def patterned_log():
    """Users who walk a genre: five items apart is what they take next, popularity aside."""
    rng = np.random.default_rng(5)
    rows = []
    for user in range(120):
        genre, start = int(rng.integers(5)), int(rng.integers(100))
        items = [(genre + 5 * ((start + step) % 20)) % 100 for step in range(14)]
        rows += [(f"u{user}", f"i{item}", 24 * user + step) for step, item in enumerate(items)]
    return log_of(rows)


@pytest.fixture
def make_taste_log():
    """Users who take every second item from one genre of their own: what features see and no source knows."""

    def make(users):
        rng = np.random.default_rng(5)
        rows = []
        for user in range(users):
            own = rng.permutation(np.arange(int(rng.integers(5)), 100, 5))[:7]
            items = np.stack([own, rng.permutation(100)[:7]], axis=1).ravel().tolist()
            rows += [(f"u{user}", f"i{item}", 24 * user + step) for step, item in enumerate(items)]
        return log_of(rows)

    return make
