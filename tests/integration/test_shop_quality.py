"""The shop's evaluation on the whole real data set, where a copy of it lies beside the repository."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cluster.config import load_settings
from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.catalog import ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventLog
from models.index import FlatIndex
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import RetrievalQuery
from pipelines.dataset import Dataset
from pipelines.evaluation.baselines import SHOP_BASELINES, Recommend, once, shop_baselines
from pipelines.evaluation.evaluate import evaluate
from pipelines.evaluation.protocol import Split, moment_of, split_by_time
from pipelines.importers import online_retail

SOURCE = Path(__file__).parents[3] / "shared" / "data" / "online-retail"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    if not SOURCE.is_dir():
        pytest.skip("no copy of online-retail at ../shared/data beside the repository")
    return online_retail(SOURCE, rejects=tmp_path_factory.mktemp("import") / "rejects")


def test_the_protocol_asks_the_documented_customers_and_poison_in_test_events_reaches_no_training(
    shop: Dataset,
) -> None:
    log = shop.events
    new, repeat = split_by_time(log), split_by_time(log, repeats=True)
    assert (len(new.cases), len(repeat.cases)) == (889, 1_027)
    items = log.item_ids.copy()
    items[log.timestamps_ms >= moment_of(log, 0.9)] = "85123A"
    poisoned = split_by_time(EventLog(log.user_ids, items, log.types, log.values, log.timestamps_ms), repeats=True)
    for column in EventLog.__slots__:
        np.testing.assert_array_equal(getattr(repeat.train, column), getattr(poisoned.train, column))
    for clean, other in zip(repeat.cases, poisoned.cases, strict=True):
        assert clean.user.item_ids == other.user.item_ids and other.targets == {"85123A"}


@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_the_shop_profile_beats_every_yardstick_without_any_text(shop: Dataset, tmp_path: Path) -> None:
    write_catalog(shop.items, tmp_path / "catalog.arrow")
    catalog, settings = ItemCatalog(tmp_path), load_settings("shop", environ={})
    vectors = HashEncoder().encode([i.title for i in shop.items])
    given = settings.models.retrieval
    textless = {
        name: getattr(given, name).model_copy(update={"semantic": 0.0})
        for name in ("weights", "short_weights", "unseen_weights")
    }
    retrieval = given.model_copy(update=textless)

    def ours(train: EventLog) -> Recommend:
        behaviour = fit_behaviour(train, catalog, settings.pipelines.behaviour)
        statistics = fit_statistics(train, catalog, half_life_days=settings.pipelines.popularity_half_life_days)
        engine = RetrievalEngine(catalog, vectors, FlatIndex(vectors), behaviour, statistics, retrieval)

        def recommend(query: RetrievalQuery, k: int) -> Sequence[str]:
            return catalog.item_ids(engine.retrieve(query).rows)

        return recommend

    methods = {name: once(build) for name, build in {**shop_baselines(catalog), "ours": ours}.items()}
    train = split_by_time(shop.events).train
    for repeats in (False, True):
        split = Split(train, split_by_time(shop.events, repeats=repeats).cases)
        report = evaluate(lambda seed, s=split: s, catalog, methods, seeds=(0,))
        assert report.advantage("ours", report.best_of(SHOP_BASELINES)).low > 0
