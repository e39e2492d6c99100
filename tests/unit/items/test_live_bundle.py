"""A release that items are added to, changed in and removed from while it is served."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.bundle import ReleaseBundle
from models.candidates import Source
from models.encoder import HashEncoder
from models.events import EventType
from models.features import features_from_events
from models.items.change import ItemChange
from models.rankers.calibration import PlattScaling
from models.rankers.compressed import CompressedModel, CompressedRanker
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.id_vectors import WholeIds
from models.rankers.inputs import POPULARITY_COLUMNS, label_vocabulary
from models.rankers.network import NetworkShape, initialise
from models.retrieval.query import AttributeFilter, RetrievalQuery
from serve.deployments.replica import warm_edge

NOW = 1_760_000_000_000


def vector(text: str) -> np.ndarray:
    return HashEncoder(32).encode([text])[0]


def put(item_id: str, title: str, **options: object) -> ItemChange:
    return ItemChange("put", item_id, NOW, title, "", vector=vector(title), **options)  # type: ignore[arg-type]


def changed(bundle: ReleaseBundle, *changes: ItemChange) -> ReleaseBundle:
    after = bundle.item_sequence
    return bundle.with_changes([(after + n, change) for n, change in enumerate(changes, start=1)])


def ask(bundle: ReleaseBundle, **options: object) -> list[str]:
    found = bundle.engine.retrieve(RetrievalQuery(**{"n": 5, "now_ms": NOW, **options}))  # type: ignore[arg-type]
    return bundle.catalog.item_ids(found.rows)


def test_a_new_item_is_found_by_its_content_at_once_and_the_release_itself_is_untouched(tiny) -> None:
    grown = changed(tiny.bundle, put("new-1", "quixotic zeppelin"))
    assert ask(grown, intent=vector("quixotic zeppelin"))[0] == "new-1"
    assert "new-1" not in ask(tiny.bundle, intent=vector("quixotic zeppelin"), n=1000)
    assert len(grown.catalog) == len(tiny.bundle.catalog) + 1
    assert grown.release_id == tiny.bundle.release_id


def test_lists_for_users_without_anything_to_do_with_new_items_stay_as_they_are(tiny) -> None:
    items = tiny.bundle.catalog.item_ids(np.arange(6, dtype=np.int32))
    user = features_from_events(
        items, np.full(6, EventType.click, np.uint8), np.ones(6, np.float32), np.arange(6, dtype=np.int64) + NOW - 100
    )
    before = tiny.bundle.engine.retrieve(RetrievalQuery(n=20, now_ms=NOW, user=user))
    grown = changed(tiny.bundle, put("new-1", "quixotic zeppelin"))
    after = grown.engine.retrieve(RetrievalQuery(n=21, now_ms=NOW, user=user))
    known = after.rows < len(tiny.bundle.catalog)
    assert set(before.rows[:10].tolist()) <= set(after.rows[known].tolist())


def test_a_user_who_took_a_new_item_is_led_on_from_it_by_content(tiny) -> None:
    grown = changed(tiny.bundle, put("new-1", "quixotic zeppelin"), put("new-2", "quixotic zeppelin captain"))
    user = features_from_events(
        ["new-1"], np.array([EventType.click], np.uint8), np.ones(1, np.float32), np.array([NOW - 5])
    )
    found = grown.engine.retrieve(RetrievalQuery(n=5, now_ms=NOW, user=user))
    ids = grown.catalog.item_ids(found.rows)
    assert ids[0] == "new-2"
    assert "new-1" not in ids
    assert int(found.sources[0]) & (Source.semantic | Source.fresh)


@pytest.mark.parametrize("change", [{"hidden": True}, {"available": False}])
def test_what_is_hidden_or_unavailable_is_never_returned(tiny, change: dict[str, bool]) -> None:
    popular = ask(tiny.bundle)[0]
    grown = changed(tiny.bundle, ItemChange("patch", popular, NOW, **change))
    assert popular not in ask(grown, n=1000)
    assert popular not in ask(grown, n=1000, only_items=(popular,))


def test_a_removed_item_is_gone_and_a_put_brings_it_back(tiny) -> None:
    popular = ask(tiny.bundle)[0]
    gone = changed(tiny.bundle, ItemChange("remove", popular, NOW))
    assert popular not in ask(gone, n=1000)
    assert popular in ask(changed(gone, put(popular, "again")), n=1000)


def test_filters_go_by_the_changed_attributes(tiny) -> None:
    item = ask(tiny.bundle)[0]
    grown = changed(tiny.bundle, ItemChange("patch", item, NOW, attributes={"mood": ("wistful",)}))
    wistful = {"mood": AttributeFilter(any_of=("wistful",))}
    assert ask(grown, filters=wistful) == [item]


def test_ties_are_broken_by_item_id_for_new_items_too(tiny) -> None:
    same = [put(name, "one and the same") for name in ("zz", "aa", "mm")]
    found = ask(changed(tiny.bundle, *same), intent=vector("one and the same"))
    assert found[:3] == ["aa", "mm", "zz"]


def test_an_item_whose_vector_does_not_fit_is_there_but_like_nothing(tiny) -> None:
    odd = ItemChange("put", "odd", NOW, "odd", "", vector=np.ones(7, np.float32))
    grown = changed(tiny.bundle, odd)
    assert "odd" in ask(grown, n=1000)
    assert not grown.embeddings[len(tiny.bundle.catalog)].any()


def test_the_compressed_ranker_scores_new_items_from_their_content(tiny) -> None:
    grown = changed(tiny.bundle, put("new-1", "quixotic zeppelin"))
    vocabulary = label_vocabulary(grown.catalog)
    names = list(grown.catalog.number_names)
    shape = NetworkShape(
        text_dim=32,
        labels=len(vocabulary),
        numbers=POPULARITY_COLUMNS + len(names),
        features=len(FEATURE_NAMES),
        ids=len(tiny.bundle.catalog),
    )
    known, scaling = np.sort(tiny.bundle.catalog.hashes), PlattScaling(1.0, 0.0)
    ids = WholeIds(np.zeros((len(known) + 1, shape.dim), np.float32))
    model = CompressedModel(shape, initialise(shape, seed=0), vocabulary, names, known, scaling, ids=ids)
    ranker = CompressedRanker(model, grown.catalog, grown.embeddings, grown.statistics)
    query = RetrievalQuery(n=1000, now_ms=NOW, intent=vector("quixotic zeppelin"))
    found = grown.engine.retrieve(query)
    scores = ranker.score(query, found)
    assert np.isfinite(scores).all()
    assert len(scores) == len(found)
    assert len(tiny.bundle.catalog) in found.rows


def test_warming_an_ingress_after_a_change_reads_no_ranker_and_builds_no_tables(tiny, tmp_path) -> None:
    labels = label_vocabulary(tiny.bundle.catalog)
    shape = NetworkShape(text_dim=32, labels=len(labels), numbers=1 + POPULARITY_COLUMNS, features=len(FEATURE_NAMES))
    names, hashes = ["year"], np.sort(tiny.bundle.catalog.hashes)
    CompressedModel(shape, initialise(shape, seed=0), labels, names, hashes, PlattScaling(1.0, 0.0)).save(tmp_path)
    base = replace(tiny.bundle, folders={**tiny.bundle.folders, "ranker": tmp_path})
    warm_edge(base)
    assert base.feature_weights is not None and "features" in vars(base.feature_weights)
    grown = changed(base, put("new-1", "quixotic zeppelin"))
    warm_edge(grown)
    assert "feature_weights" not in vars(grown)
    assert grown.feature_weights is not None
    assert grown.feature_weights._head is base.feature_weights._head
