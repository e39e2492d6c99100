"""Retrieval about an item rather than for a user: content and links, on catalogs small and large."""

import numpy as np
import pytest

from models.behaviour.behaviour import fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.candidates import COLUMN_OF, Source
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.index import FlatIndex
from models.retrieval import sources
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights


@pytest.fixture(params=["every item is scored", "the index is asked"])
def engine(request, tmp_path, log_of, monkeypatch) -> RetrievalEngine:
    if request.param == "the index is asked":
        for module in ("models.retrieval.sources", "models.retrieval.engine"):
            monkeypatch.setattr(f"{module}.DENSE_BELOW", 10)
        assert sources.DENSE_BELOW == 10
    items = [Item(f"i{n:02}", f"Film {n}", labels={"genre": (("Comedy", "Drama")[n % 2],)}) for n in range(40)]
    write_catalog(items, tmp_path / CATALOG_FILE)
    catalog = ItemCatalog(tmp_path)
    vectors = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    log = log_of(users=60, each=10)
    behaviour, statistics = fit_behaviour(log, catalog), fit_statistics(log, catalog)
    return RetrievalEngine(catalog, vectors, FlatIndex(vectors), behaviour, statistics)


def ask(engine: RetrievalEngine, seed: str, n: int = 10, **options):
    query = RetrievalQuery(n=n, now_ms=2**41, seed_items=(seed,), personal=False, about_seeds=True, **options)
    return engine.retrieve(query)


def test_content_and_links_alone_decide_and_the_item_is_never_in_its_own_list(engine) -> None:
    found = ask(engine, "i03", n=39)
    assert len(found) == 39 and 3 not in found.rows
    columns = [COLUMN_OF[s] for s in (Source.similar, Source.sequential)]
    np.testing.assert_allclose(found.scores, found.source_scores[:, columns].sum(axis=1), rtol=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    others = [at for s, at in COLUMN_OF.items() if s not in (Source.similar, Source.sequential, Source.popular)]
    assert not found.source_scores[:, others].any(), "a source that does not count was asked"
    assert not (found.sources & ~np.uint16(Source.similar | Source.sequential | Source.popular)).any()


def test_the_weights_for_items_are_a_setting_of_their_own(engine) -> None:
    none = dict.fromkeys(SourceWeights.model_fields, 0.0)
    engine.settings = RetrievalSettings(item_weights=SourceWeights(**{**none, "similar": 1.0}))
    nearest = np.argsort(
        -(engine._sources[Source.similar]._space.vectors @ engine._sources[Source.similar]._space.vectors[3])
    )
    assert ask(engine, "i03", n=5).rows.tolist() == nearest[1:6].tolist()


def test_a_filter_is_never_violated_and_still_fills_the_list(engine) -> None:
    found = ask(engine, "i03", n=20, filters={"genre": AttributeFilter(any_of=("Comedy",))})
    assert len(found) == 20 and (found.rows % 2 == 0).all()


def test_an_item_nobody_took_is_described_by_its_content(engine, tmp_path) -> None:
    alone = fit_behaviour(engine_log_without(3), engine.catalog)
    engine._sources[Source.sequential]._transitions = alone.transitions
    found = ask(engine, "i03")
    assert len(found) == 10 and not found.source_scores[:, COLUMN_OF[Source.sequential]].any()


def engine_log_without(row: int):
    from models.events import EventLog

    users = np.repeat([f"u{n}" for n in range(5)], 4).astype(object)
    items = np.array([f"i{n:02}" for n in range(20, 40)], object)
    assert f"i{row:02}" not in items
    ones = np.ones(20, np.float32)
    return EventLog(users, items, np.full(20, 6, np.uint8), ones, np.arange(20, dtype=np.int64))
