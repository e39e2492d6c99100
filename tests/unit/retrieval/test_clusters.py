"""User clusters: who belongs together, what each group takes, and whom that helps."""

from pathlib import Path

import numpy as np
import pytest

from models.behaviour.behaviour import Behaviour, BehaviourSettings, fit_behaviour
from models.behaviour.clusters import UserClusters, fit_clusters
from models.behaviour.interactions import interactions_of
from models.behaviour.portraits import portraits
from models.behaviour.statistics import fit_statistics
from models.candidates import Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.features import UserFeatures
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights

ITEMS, DIM = 24, 8
NOW_MS = 1_700_000_000_000
NOTHING = {str(s.name): 0.0 for s in Source if s is not Source.given}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    """Items 0 to 11 are dramas, the others westerns."""
    folder: Path = tmp_path_factory.mktemp("catalog")
    items = [Item(f"i{n:02}", f"Film {n}", labels={"genre": ("Drama" if n < 12 else "Western",)}) for n in range(ITEMS)]
    write_catalog(items, folder / "catalog.arrow")
    return ItemCatalog(folder)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Content in two directions, with a little of each item's own."""
    rng = np.random.default_rng(0)
    found = 0.1 * rng.random((ITEMS, DIM)).astype(np.float32)
    found[:12, 0] += 1
    found[12:, 1] += 1
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def log() -> EventLog:
    """60 users of dramas and 30 of westerns; everyone takes the first item of their kind and four more."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(90):
        base = 0 if user < 60 else 12
        rows += [(f"u{user:02}", f"i{base + int(n):02}") for n in (0, *rng.choice(np.arange(1, 12), 4, replace=False))]
    users, items = zip(*rows, strict=True)
    return EventLog(
        np.array(users, object), np.array(items, object), np.full(len(rows), EventType.click, np.uint8),
        np.ones(len(rows), np.float32), NOW_MS - 1000 * np.arange(len(rows), 0, -1, dtype=np.int64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def clusters(catalog: ItemCatalog, log: EventLog, vectors: np.ndarray) -> UserClusters:
    return fit_clusters(interactions_of(log, catalog), vectors, clusters=2)


def test_people_who_take_the_same_are_one_cluster_and_its_items_are_theirs(clusters: UserClusters) -> None:
    assert clusters.sizes.tolist() == [60, 30]
    rows, shares = clusters.items(0)
    assert rows[0] == 0 and shares[0] == 1.0 and set(rows) == set(range(12))
    assert shares[1:].max() < 1 and (np.diff(shares) <= 0).all()
    rows, _ = clusters.items(1)
    assert rows[0] == 12 and set(rows) == set(range(12, 24))
    np.testing.assert_allclose(np.linalg.norm(clusters.centroids, axis=1), 1.0, rtol=1e-5)


def test_a_second_fit_gives_the_same_clusters(catalog, log, vectors, clusters: UserClusters) -> None:
    again = fit_clusters(interactions_of(log, catalog), vectors, clusters=2)
    for column in UserClusters.__slots__:
        np.testing.assert_array_equal(getattr(again, column), getattr(clusters, column))


def test_few_users_make_few_clusters_and_none_make_none(catalog, log, vectors) -> None:
    data = interactions_of(log, catalog)
    assert len(fit_clusters(data, vectors, clusters=16, minimum_users=45)) == 2
    assert len(fit_clusters(data, vectors, clusters=16, minimum_users=91)) == 0
    assert len(fit_clusters(data, vectors, clusters=0)) == 0
    assert len(fit_clusters(interactions_of(EventLog.empty(), catalog), vectors)) == 0


def test_clusters_are_part_of_the_behaviour_artifact(catalog, log, vectors, tmp_path: Path) -> None:
    fitted = fit_behaviour(log, catalog, BehaviourSettings(user_clusters=2), vectors=vectors)
    fitted.save(tmp_path)
    loaded = Behaviour.load(tmp_path)
    assert loaded.clusters.sizes.tolist() == [60, 30]
    np.testing.assert_array_equal(loaded.clusters.rows, fitted.clusters.rows)
    assert not len(fit_behaviour(log, catalog).clusters), "without content there is nothing to group by"


def engine_of(catalog: ItemCatalog, log: EventLog, vectors: np.ndarray) -> RetrievalEngine:
    behaviour = fit_behaviour(log, catalog, BehaviourSettings(user_clusters=2), vectors=vectors)
    alone = SourceWeights(**{**NOTHING, "cluster": 1.0})
    settings = RetrievalSettings(weights=alone, short_weights=alone, cold_weights=alone, search_weights=alone)
    return RetrievalEngine(catalog, vectors, FlatIndex(vectors), behaviour, fit_statistics(log, catalog), settings)


def user_of(*items: str) -> UserFeatures:
    count = len(items)
    return UserFeatures(
        items, np.full(count, EventType.click, np.uint8), np.ones(count, np.float32),
        np.full(count, NOW_MS - 1, np.int64), known=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "known",
    [{"user": user_of("i17")}, {"seed_items": ("i17",)}, {"intent": "westerns"}],
    ids=["one event", "a seed item", "a search"],
)
def test_next_to_no_history_gets_what_the_nearest_cluster_takes(catalog, log, vectors, known) -> None:
    known = {name: vectors[20] if value == "westerns" else value for name, value in known.items()}
    found = engine_of(catalog, log, vectors).retrieve(RetrievalQuery(n=5, now_ms=NOW_MS, **known))
    assert catalog.item_ids(found.rows)[0] == "i12" and (found.rows >= 12).all()
    assert (found.sources & np.uint16(Source.cluster)).all()


def test_a_history_of_some_length_and_nobody_at_all_get_no_prior(catalog, log, vectors) -> None:
    engine = engine_of(catalog, log, vectors)
    for user in (user_of("i13", "i14", "i15", "i16", "i17"), user_of()):
        found = engine.retrieve(RetrievalQuery(n=5, now_ms=NOW_MS, user=user))
        assert not (found.sources & np.uint16(Source.cluster)).any()
    # Popularity fills the list instead.
    assert catalog.item_ids(found.rows)[0] == "i00"


def test_a_portrait_names_what_sets_a_cluster_apart(catalog, clusters: UserClusters) -> None:
    dramas, westerns = portraits(clusters, catalog, top=3)
    assert (dramas.users, westerns.users) == (60, 30) and dramas.share == pytest.approx(2 / 3)
    assert [m.name for m in dramas.labels] == ["genre: Drama"] and dramas.labels[0].share == 1.0
    assert [m.name for m in westerns.labels] == ["genre: Western"]
    assert westerns.labels[0].lift == pytest.approx(3.0) and westerns.items[0].name == "Film 12"
    assert len(westerns.items) == 3 and westerns.items[0].lift == pytest.approx(3.0)
