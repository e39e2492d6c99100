"""A catalog with live changes reads exactly like one that was written with them; so do its vectors and its index."""

from __future__ import annotations

import numpy as np
import pytest

from models.catalog import Item, ItemCatalog
from models.ids import hash64_array
from models.index import FaissIndex, FlatIndex
from models.index_build import build_faiss
from models.items.change import ItemChange
from models.items.live import LiveItems
from models.items.vectors import LiveIndex, LiveVectors
from models.retrieval.filters import AttributeMasks
from models.retrieval.query import AttributeFilter

OLD = [
    Item("a", "Alpha", "first", {"genres": ("Drama", "War")}, {"year": 1990.0}),
    Item("b", "Beta", "", {"genres": ("Comedy",)}, {}),
    Item("c", "Gamma", "third", {}, {"year": 2001.0}),
    Item("d", "Delta", "", {"genres": ("Drama",), "maker": ("Acme",)}, {}),
]
CHANGES = [
    ItemChange("put", "x", 10, "Xi", "new one", {"genres": ("Comedy", "Noir"), "price": 3.5}),
    ItemChange("patch", "b", 11, title="Beta II", attributes={"genres": ("Noir",), "year": 1999.0}),
    ItemChange("put", "y", 12, "Ypsilon"),
    ItemChange("patch", "a", 13, attributes={"genres": None}),
    ItemChange("put", "d", 14, "Delta anew", attributes={"maker": ("Bolt",)}),
    ItemChange("patch", "nobody", 15, title="ignored"),
]
EXPECTED = [
    Item("a", "Alpha", "first", {}, {"year": 1990.0}),
    Item("b", "Beta II", "", {"genres": ("Noir",)}, {"year": 1999.0}),
    Item("c", "Gamma", "third", {}, {"year": 2001.0}),
    Item("d", "Delta anew", "", {"maker": ("Bolt",)}, {}),
    Item("x", "Xi", "new one", {"genres": ("Comedy", "Noir")}, {"price": 3.5}),
    Item("y", "Ypsilon", "", {}, {}),
]


def live(changes: list[ItemChange] = CHANGES) -> tuple[LiveItems, ItemCatalog]:
    old = ItemCatalog.of(OLD)
    return LiveItems().after(list(enumerate(changes, start=1)), old), old


def test_every_reading_equals_that_of_a_catalog_written_whole() -> None:
    items, old = live()
    found, whole = items.catalog(old), ItemCatalog.of(EXPECTED)
    assert items.sequence == len(CHANGES)
    assert len(found) == len(whole)
    assert [found.item(r) for r in range(len(found))] == EXPECTED
    assert found.label_names == whole.label_names
    assert found.number_names == whole.number_names
    rows = np.array([5, 0, 4, 3], np.int32)
    assert found.item_ids(rows) == ["y", "a", "x", "d"]
    assert [found.row(i.item_id) for i in EXPECTED] == list(range(6))
    assert found.row("nobody") is None
    asked = ["y", "nobody", "b", "x", "c"]
    assert found.rows(asked).tolist() == [5, -1, 1, 4, 2]
    assert found.rows_of_hashes(hash64_array(asked)).tolist() == [5, -1, 1, 4, 2]
    np.testing.assert_array_equal(found.hashes, whole.hashes)
    assert [found.document(r) for r in range(6)] == [whole.document(r) for r in range(6)]


@pytest.mark.parametrize("name", ["genres", "maker", "unknown"])
def test_label_columns_hold_the_same_labels(name: str) -> None:
    items, old = live()
    found, whole = items.catalog(old).label_column(name), ItemCatalog.of(EXPECTED).label_column(name)
    if whole is None:
        assert found is None
        return
    assert found is not None
    for row in range(len(EXPECTED)):
        mine = [found.vocabulary[c] for c in found.codes[found.offsets[row] : found.offsets[row + 1]]]
        theirs = [whole.vocabulary[c] for c in whole.codes[whole.offsets[row] : whole.offsets[row + 1]]]
        assert mine == theirs


@pytest.mark.parametrize("name", ["year", "price", "unknown"])
def test_number_columns_are_equal(name: str) -> None:
    items, old = live()
    found, whole = items.catalog(old).number_column(name), ItemCatalog.of(EXPECTED).number_column(name)
    if whole is None:
        assert found is None
    else:
        np.testing.assert_array_equal(found, whole)


def test_attribute_masks_see_changed_and_new_items() -> None:
    items, old = live()
    masks = AttributeMasks(items.catalog(old))
    assert masks.all_of({"genres": AttributeFilter(any_of=("Noir",))}).tolist() == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]
    assert masks.all_of({"genres": AttributeFilter(none_of=("drama",))}).all()
    assert masks.all_of({"price": AttributeFilter(gte=3.0)}).tolist() == [False, False, False, False, True, False]


def test_the_same_log_gives_the_same_rows_however_it_is_cut() -> None:
    whole, old = live()
    for cut in range(len(CHANGES) + 1):
        numbered = list(enumerate(CHANGES, start=1))
        parts = LiveItems().after(numbered[:cut], old).after(numbered[cut:], old)
        assert parts == whole


def test_a_removed_item_keeps_its_row_is_withheld_and_comes_back_by_a_put_alone() -> None:
    put, remove = ItemChange("put", "x", 1, "Xi"), ItemChange("remove", "x", 2)
    gone, old = live([put, remove, ItemChange("patch", "x", 3, title="no"), ItemChange("put", "z", 4, "Zeta")])
    assert gone.withheld(6).tolist() == [False] * 4 + [True, False]
    assert gone.catalog(old).title(4) == "Xi"
    back = gone.after([(5, ItemChange("put", "x", 5, "Xi again"))], old)
    assert not back.withheld(6).any()
    assert back.catalog(old).title(4) == "Xi again"


@pytest.mark.parametrize("change", [{"hidden": True}, {"available": False}])
def test_hidden_and_unavailable_items_are_withheld_until_a_patch_says_otherwise(change: dict[str, bool]) -> None:
    items, old = live([ItemChange("patch", "b", 1, **change)])
    assert items.withheld(4).tolist() == [False, True, False, False]
    undone = {name: not value for name, value in change.items()}
    assert not items.after([(2, ItemChange("patch", "b", 2, **undone))], old).withheld(4).any()


def test_a_change_survives_being_bytes() -> None:
    vector = np.arange(3, dtype=np.float32)
    change = ItemChange("put", "x", 5, "Xi", "t", {"g": ("A",), "n": 2.0, "gone": None}, False, True, vector)
    read = ItemChange.from_bytes(*change.to_bytes())
    assert read is not None
    assert read.vector is not None
    np.testing.assert_array_equal(read.vector, vector)
    assert {n: getattr(read, n) for n in read.__slots__ if n != "vector"} == {
        n: getattr(change, n) for n in change.__slots__ if n != "vector"
    }


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"v":2}', b'{"v":1,"op":"drop","id":"x"}', b'{"v":1,"op":"put","id":"no id"}']
)
def test_bytes_of_another_version_are_no_change(body: bytes) -> None:
    assert ItemChange.from_bytes(body, b"") is None


def vectors(count: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def extended(count: int = 300) -> tuple[LiveVectors, np.ndarray]:
    release, rows = vectors(count, 0), np.array([3, 7, count, count + 1], np.int32)
    changed = vectors(4, 1)
    whole = np.concatenate([release, changed[2:]])
    whole[[3, 7]] = changed[:2]
    return LiveVectors(release, rows, changed), whole


def test_live_vectors_read_like_one_array() -> None:
    live_vectors, whole = extended()
    assert live_vectors.shape == whole.shape
    rows = np.array([7, 0, 301, 3, 3], np.int32)
    np.testing.assert_array_equal(live_vectors[rows], whole[rows])
    np.testing.assert_array_equal(live_vectors[5], whole[5])
    np.testing.assert_array_equal(live_vectors[301], whole[301])
    np.testing.assert_array_equal(live_vectors[2:302:7], whole[2:302:7])
    np.testing.assert_allclose(live_vectors @ whole[3], whole @ whole[3], atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.02])
def test_the_live_index_finds_what_a_flat_one_over_everything_finds(share: float) -> None:
    live_vectors, whole = extended()
    release = live_vectors.release
    index = LiveIndex(FaissIndex(build_faiss(release).index, release), live_vectors)
    flat = FlatIndex(whole)
    rng = np.random.default_rng(2)
    for query in vectors(20, 3):
        allowed = rng.random(len(whole)) < share
        rows, scores = index.search(query, 10, allowed=allowed)
        expected, best = flat.search(query, 10, allowed=allowed)
        assert rows.tolist() == expected.tolist()
        np.testing.assert_allclose(scores, best, atol=1e-5)
        assert allowed[rows].all()
