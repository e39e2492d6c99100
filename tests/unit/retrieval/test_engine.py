from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import models.retrieval.engine as engine_module
import models.retrieval.sources as sources_module
from models.behaviour.behaviour import BehaviourSettings, fit_behaviour
from models.behaviour.statistics import fit_statistics
from models.bundle import ReleaseBundle
from models.candidates import COLUMN_OF, SCORED_SOURCES, Source
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType
from models.features import UserFeatures, features_from_events
from models.index import FlatIndex, write_faiss
from models.index_build import build_faiss
from models.releases import Release
from models.retrieval.engine import RetrievalEngine
from models.retrieval.query import AttributeFilter, RetrievalQuery
from models.retrieval.settings import RetrievalSettings, SourceWeights

NOW = 20 * 86_400_000


def user(*item_ids: str, last: EventType = EventType.click) -> UserFeatures:
    types = np.full(len(item_ids), EventType.click, np.uint8)
    types[-1:] = last
    times = NOW - 1000 * np.arange(len(item_ids), 0, -1).astype(np.int64)
    return features_from_events(list(item_ids), types, np.ones(len(item_ids), np.float32), times)


def ids(engine: RetrievalEngine, **query: object) -> list[str]:
    found = engine.retrieve(RetrievalQuery(**{"n": 10, "now_ms": NOW, **query}))  # type: ignore[arg-type]
    return engine.catalog.item_ids(found.rows)


def test_what_follows_the_last_items_comes_first(engine: RetrievalEngine) -> None:
    walked = [f"i{n}" for n in range(4, 16)]
    assert {"i16", "i17"} & set(ids(engine, user=user(*walked))[:3])


def test_an_event_of_a_moment_ago_changes_the_answer(engine: RetrievalEngine) -> None:
    assert ids(engine, user=user("i3", "i4")) != ids(engine, user=user("i3", "i4", "i40"))


def test_events_after_the_time_of_the_request_do_not_count(engine: RetrievalEngine) -> None:
    both = user("i3", "i40")
    early = int(both.timestamps_ms[0])
    past = engine.retrieve(RetrievalQuery(n=10, now_ms=early, user=both, exclude_seen=False))
    only = engine.retrieve(RetrievalQuery(n=10, now_ms=early, user=both.take(np.array([0])), exclude_seen=False))
    np.testing.assert_array_equal(past.rows, only.rows)


def test_a_cold_user_gets_popular_items_in_full_length(engine: RetrievalEngine) -> None:
    found = engine.retrieve(RetrievalQuery(n=10, now_ms=NOW))
    assert len(found) == 10
    popular = engine.retrieve(RetrievalQuery(n=10, now_ms=NOW)).source_scores[:, COLUMN_OF[Source.popular]]
    assert (popular > 0).all()


def test_without_profiling_the_user_makes_no_difference(engine: RetrievalEngine) -> None:
    known = engine.retrieve(RetrievalQuery(n=20, now_ms=NOW, user=user("i3", "i4"), personal=False, seed_items=("i9",)))
    nobody = engine.retrieve(RetrievalQuery(n=20, now_ms=NOW, personal=False, seed_items=("i9",)))
    np.testing.assert_array_equal(known.rows, nobody.rows)
    np.testing.assert_array_equal(known.scores, nobody.scores)


def test_seed_items_steer_and_do_not_come_back(engine: RetrievalEngine) -> None:
    found = ids(engine, seed_items=("i30", "i31"))
    assert "i32" in found and not {"i30", "i31"} & set(found)


def test_search_intent_leads_a_cold_user(engine: RetrievalEngine, embeddings: np.ndarray) -> None:
    found = engine.retrieve(RetrievalQuery(n=60, now_ms=NOW, intent=embeddings[7]))
    best = found.source_scores[:, COLUMN_OF[Source.semantic]].argmax()
    assert found.rows[best] == 7


def test_hidden_items_stay_away_even_where_repeats_are_allowed(engine: RetrievalEngine) -> None:
    found = ids(engine, n=60, user=user("i3", "i4", last=EventType.hide), exclude_seen=False)
    assert "i4" not in found and "i3" in found


def test_repeats_are_proposed_by_their_own_source(engine: RetrievalEngine) -> None:
    found = engine.retrieve(RetrievalQuery(n=5, now_ms=NOW, user=user("i3", "i3", "i50"), exclude_seen=False))
    assert found.sources[list(found.rows).index(engine.catalog.row("i3"))] & Source.repeat


def test_given_items_are_all_ranked_and_nothing_else_is(engine: RetrievalEngine) -> None:
    found = engine.retrieve(RetrievalQuery(n=10, now_ms=NOW, user=user("i3"), only_items=("i5", "i9", "nope")))
    assert sorted(engine.catalog.item_ids(found.rows)) == ["i5", "i9"]
    assert all(bits & Source.given for bits in found.sources)


def test_every_candidate_names_a_source_and_has_all_scores(engine: RetrievalEngine) -> None:
    found = engine.retrieve(RetrievalQuery(n=60, now_ms=NOW, user=user("i3", "i4")))
    assert (found.sources > 0).all() and found.source_scores.shape == (len(found), len(SCORED_SOURCES))
    assert np.isfinite(found.source_scores).all() and (np.diff(found.scores) <= 0).all()


def test_equal_scores_are_ordered_by_item_id(tmp_path: Path) -> None:
    write_catalog([Item(i, i) for i in ("b", "c", "a", "d")], tmp_path / "catalog.arrow")
    catalog, vectors, nothing = ItemCatalog(tmp_path), np.eye(4, dtype=np.float32), EventLog.empty()
    engine = RetrievalEngine(
        catalog, vectors, FlatIndex(vectors), fit_behaviour(nothing, catalog), fit_statistics(nothing, catalog)
    )
    assert ids(engine, n=3) == ["a", "b", "c"]


def test_an_empty_catalog_and_an_impossible_filter_give_no_candidates(engine: RetrievalEngine, tmp_path: Path) -> None:
    write_catalog([], tmp_path / "catalog.arrow")
    catalog, vectors, nothing = ItemCatalog(tmp_path), np.empty((0, 4), np.float32), EventLog.empty()
    empty = RetrievalEngine(
        catalog, vectors, FlatIndex(vectors), fit_behaviour(nothing, catalog), fit_statistics(nothing, catalog)
    )
    assert len(empty.retrieve(RetrievalQuery(n=5, now_ms=NOW, user=user("i1"), seed_items=("i2",)))) == 0
    assert ids(engine, filters={"genres": AttributeFilter(any_of=("Nonesuch",))}) == []
    assert ids(engine, n=0) == []


def test_parts_of_different_catalogs_are_refused(engine: RetrievalEngine, log: EventLog, catalog: ItemCatalog) -> None:
    wrong = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="differ in size"):
        RetrievalEngine(catalog, wrong, FlatIndex(wrong), fit_behaviour(log, catalog), fit_statistics(log, catalog))


def test_threads_get_the_same_answers_as_one_caller(engine: RetrievalEngine) -> None:
    queries = [RetrievalQuery(n=20, now_ms=NOW, user=user(f"i{n}", f"i{n + 1}")) for n in range(40)]
    alone = [engine.retrieve(q) for q in queries]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(engine.retrieve, queries))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_the_engine_of_a_bundle_answers_like_the_fitted_one(
    engine: RetrievalEngine, catalog: ItemCatalog, log: EventLog, embeddings: np.ndarray, tmp_path: Path
) -> None:
    folders = {n: tmp_path / n for n in ("catalog", "embeddings", "index", "behaviour", "statistics")}
    for folder in folders.values():
        folder.mkdir()
    rows = range(len(catalog))
    items = [Item(catalog.item_id(r), catalog.title(r), "", catalog.labels(r), catalog.numbers(r)) for r in rows]
    write_catalog(items, folders["catalog"] / "catalog.arrow")
    np.save(folders["embeddings"] / "embeddings.npy", embeddings)
    write_faiss(build_faiss(embeddings).index, folders["index"])
    fit_behaviour(log, catalog, BehaviourSettings(ease_ridge=5.0)).save(folders["behaviour"])
    fit_statistics(log, catalog).save(folders["statistics"])
    query = RetrievalQuery(n=30, now_ms=NOW, user=user("i3", "i4"))
    mapped = np.load(folders["embeddings"] / "embeddings.npy", mmap_mode="r")
    bundle = ReleaseBundle(Release({}), folders, ItemCatalog(folders["catalog"]), mapped, RetrievalSettings())
    loaded, fitted = bundle.engine.retrieve(query), engine.retrieve(query)
    np.testing.assert_array_equal(loaded.rows, fitted.rows)
    np.testing.assert_allclose(loaded.source_scores, fitted.source_scores, rtol=1e-5)


def test_a_source_of_weight_zero_proposes_nothing_but_is_still_scored(
    catalog: ItemCatalog, log: EventLog, embeddings: np.ndarray
) -> None:
    off = SourceWeights(neighbours=0.0, sequential=0.0)
    settings_off = RetrievalSettings(weights=off, short_weights=off)
    engine = RetrievalEngine(
        catalog,
        embeddings,
        FlatIndex(embeddings),
        fit_behaviour(log, catalog),
        fit_statistics(log, catalog),
        settings_off,
    )
    found = engine.retrieve(RetrievalQuery(n=20, now_ms=NOW, user=user("i3", "i4")))
    assert not (found.sources & np.uint16(Source.neighbours | Source.sequential)).any()
    assert found.source_scores[:, COLUMN_OF[Source.neighbours]].any()


def test_a_source_proposes_no_more_than_its_own_budget_and_the_list_is_full(
    catalog: ItemCatalog, log: EventLog, embeddings: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engine_module, sources_module):
        monkeypatch.setattr(module, "DENSE_BELOW", 0)

    def proposed(**depths: int) -> tuple[int, int]:
        settings = RetrievalSettings(source_depths=depths)
        parts = (FlatIndex(embeddings), fit_behaviour(log, catalog), fit_statistics(log, catalog), settings)
        engine = RetrievalEngine(catalog, embeddings, *parts)
        found = engine.retrieve(RetrievalQuery(n=20, now_ms=NOW, user=user("i3", "i4")))
        return int((found.sources & np.uint16(Source.semantic) > 0).sum()), len(found)

    assert proposed()[0] > 3
    few, listed = proposed(semantic=3)
    assert 1 <= few <= 3 and listed == 20
    with pytest.raises(ValueError, match="popular"):
        RetrievalSettings(source_depths={"popular": 1})  # type: ignore[dict-item]


filters = st.fixed_dictionaries(
    {},
    optional={
        "genres": st.builds(
            AttributeFilter,
            any_of=st.none() | st.lists(st.sampled_from(["comedy", "RARE", "x"]), max_size=2).map(tuple),
            all_of=st.none() | st.lists(st.sampled_from(["Comedy", "Rare"]), max_size=2).map(tuple),
            none_of=st.none() | st.lists(st.sampled_from(["comedy", "rare"]), max_size=2).map(tuple),
        ),
        "year": st.builds(
            AttributeFilter, gte=st.none() | st.floats(1940, 2020), lte=st.none() | st.floats(1940, 2020)
        ),
    },
)


def passes(item: dict[str, object], wanted: dict[str, AttributeFilter]) -> bool:
    """The filter rules once more, one item at a time."""
    if (genre := wanted.get("genres")) is not None:
        have = {g.casefold() for g in item["genres"]}  # type: ignore[attr-defined]
        if genre.any_of is not None and not have & {v.casefold() for v in genre.any_of}:
            return False
        if genre.all_of is not None and not (have and have >= {v.casefold() for v in genre.all_of}):
            return False
        if genre.none_of is not None and have & {v.casefold() for v in genre.none_of}:
            return False
    if (year := wanted.get("year")) is not None and (year.gte is not None or year.lte is not None):
        value = item["year"]
        if value is None or not ((year.gte or -1e9) <= value <= (1e9 if year.lte is None else year.lte)):  # type: ignore[operator]
            return False
    return True


@pytest.mark.parametrize("dense", [True, False])
@given(wanted=filters, history=st.lists(st.integers(0, 59), max_size=8), n=st.integers(1, 70), seen=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_no_returned_item_violates_a_filter_and_the_list_is_filled(
    engine: RetrievalEngine,
    dense: bool,
    wanted: dict[str, AttributeFilter],
    history: list[int],
    n: int,
    seen: bool,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if not dense:
            patch.setattr(engine_module, "DENSE_BELOW", 0)
            patch.setattr(sources_module, "DENSE_BELOW", 0)
        known = user(*(f"i{h}" for h in history))
        query = RetrievalQuery(
            n=n, now_ms=NOW, user=known, filters=wanted, exclude_seen=seen, exclude_items=("i2", "i20", "gone")
        )
        found = engine.retrieve(query)
    catalog = engine.catalog
    right = set()
    for row in range(len(catalog)):
        item = {"genres": catalog.labels(row).get("genres", ()), "year": catalog.numbers(row).get("year")}
        name = catalog.item_id(row)
        if passes(item, wanted) and name not in ("i2", "i20") and not (seen and name in known.item_ids):
            right.add(name)
    answer = catalog.item_ids(found.rows)
    assert set(answer) <= right
    assert len(answer) == len(set(answer)) == min(n, len(right))
