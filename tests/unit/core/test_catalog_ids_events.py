"""The nouns: ids, events, features, the catalog and the fake encoder."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalog import Item, ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.features import ANONYMOUS, RECENT_EVENTS, features_from_events
from models.ids import BUCKETS, bucket_of, hash64, hash64_array, is_valid_id


@pytest.mark.parametrize("text", ["a", "A-z_0.9:~", "x" * 128])
def test_valid_ids(text: str) -> None:
    assert is_valid_id(text)


@pytest.mark.parametrize("text", ["", "x" * 129, "a b", "a\n", "\na", "ü", "a/b", "a{b}", "a*", "\x00", "²", "a\u200b"])
def test_everything_else_is_no_id(text: str) -> None:
    assert not is_valid_id(text)


@given(st.text(st.characters(codec="utf-8"), max_size=50))
def test_buckets_and_hashes_stay_in_range_and_never_change(text: str) -> None:
    assert 0 <= bucket_of(text) < BUCKETS
    assert 0 <= hash64(text) < 2**64 and hash64(text) == hash64_array([text])[0]


def test_buckets_and_hashes_are_the_ones_that_stores_already_hold() -> None:
    assert (bucket_of("196"), bucket_of("u1")) == (150, 118)
    assert hash64("50") == 12_525_836_602_579_151_652


def test_event_numbers_are_stored_and_never_change() -> None:
    assert {t.name: t.value for t in EventType} == {
        "impression": 0, "view": 1, "click": 2, "like": 3, "rating": 4,
        "add_to_cart": 5, "purchase": 6, "dislike": 7, "hide": 8, "search": 9,
    }  # fmt: skip


def test_a_log_survives_arrow_and_comes_back_ordered_by_time() -> None:
    log = EventLog(
        np.array(["ü", "b", "a"], object),
        np.array(["i1", "i2", "i3"], object),
        np.array([4, 2, 1], np.uint8),
        np.array([1.5, 2, 3], np.float32),
        np.array([30, 10, 20], np.int64),
    )
    back = EventLog.from_arrow(log.to_arrow())
    assert back.user_ids.tolist() == ["b", "a", "ü"] and back.timestamps_ms.tolist() == [10, 20, 30]
    assert back.types.dtype == np.uint8 and back.values.dtype == np.float32
    assert len(EventLog.from_arrow(EventLog.empty().to_arrow())) == 0


def test_equal_times_keep_their_order() -> None:
    n = 50
    ids = np.array([f"i{k}" for k in range(n)], object)
    log = EventLog(ids, ids, np.zeros(n, np.uint8), np.zeros(n, np.float32), np.zeros(n, np.int64))
    assert log.sorted_by_time().item_ids.tolist() == ids.tolist()


def test_features_leave_impressions_and_searches_out_and_keep_the_last_events() -> None:
    n = RECENT_EVENTS + 40
    types = np.full(n, EventType.click, np.uint8)
    types[:20] = EventType.impression
    types[20:30] = EventType.search
    user = features_from_events(
        [f"i{k}" for k in range(n)], types, np.ones(n, np.float32), np.arange(n, dtype=np.int64)
    )
    assert len(user) == RECENT_EVENTS and user.item_ids[-1] == f"i{n - 1}"
    assert len(user.seen) == n - 30 and (np.diff(user.seen.astype(object)) > 0).all()
    assert user.known and user.last_event_ms() == n - 1


def test_a_stranger_has_no_history() -> None:
    assert not ANONYMOUS.known and len(ANONYMOUS) == 0 and ANONYMOUS.last_event_ms() is None
    none = np.empty(0)
    assert not features_from_events([], none.astype(np.uint8), none.astype(np.float32), none.astype(np.int64)).known


ITEMS = [
    Item(
        "b",
        "Amélie – 天使爱美丽",
        "Ein “Text”\n\u202e 🎬",
        {"genre": ("Komödie", "Drama"), "maker": ()},
        {"year": 2001},
    ),
    Item("a", "", "", {}, {"year": float("nan"), "price": -1.5}),
    Item("c", "x" * 10_000, labels={"genre": ("drama",), "tag": ("a, b", "")}),
]


@pytest.fixture
def catalog(tmp_path) -> ItemCatalog:
    write_catalog(ITEMS, tmp_path / "catalog.arrow")
    return ItemCatalog(tmp_path)


def test_a_catalog_gives_back_what_was_written_whatever_the_script(catalog: ItemCatalog) -> None:
    assert [catalog.item_id(r) for r in range(3)] == ["b", "a", "c"]
    assert catalog.title(0) == ITEMS[0].title and catalog.text(0) == ITEMS[0].text
    assert catalog.labels(0) == {"genre": ("Komödie", "Drama")} and catalog.labels(1) == {}
    assert catalog.labels(2) == {"genre": ("drama",), "tag": ("a, b", "")}
    assert catalog.numbers(0) == {"year": 2001.0} and catalog.numbers(1)["price"] == -1.5
    assert catalog.title(1) == "" and catalog.text(2) == ""
    assert set(catalog.label_names) == {"genre", "maker", "tag"} and set(catalog.number_names) == {"year", "price"}


def test_rows_of_known_and_unknown_ids(catalog: ItemCatalog) -> None:
    assert catalog.rows(["c", "nope", "b", ""]).tolist() == [2, -1, 0, -1]
    assert catalog.rows([]).tolist() == [] and catalog.rows([]).dtype == np.int32
    assert (catalog.row("a"), catalog.row("nope")) == (1, None)
    assert catalog.rows_of_hashes(hash64_array(["a", "zzz"])).tolist() == [1, -1]
    assert catalog.item_ids(np.array([2, 0], np.int32)) == ["c", "b"]


def test_labels_compare_without_case_and_missing_ones_match_nothing(catalog: ItemCatalog) -> None:
    column = catalog.label_column("genre")
    assert column is not None
    assert column.mask_of(["DRAMA"]).tolist() == [True, False, True]
    assert column.mask_of(["KOMÖDIE"]).tolist() == [True, False, False]
    assert column.mask_of([]).tolist() == [False] * 3
    empty = catalog.label_column("maker")
    assert empty is not None and empty.mask_of(["x"]).tolist() == [False] * 3
    assert catalog.label_column("nope") is None and catalog.number_column("nope") is None


def test_missing_numbers_are_nan(catalog: ItemCatalog) -> None:
    year = catalog.number_column("year")
    assert year is not None and year[0] == 2001 and np.isnan(year[1]) and np.isnan(year[2])


def test_a_document_reads_like_text(catalog: ItemCatalog) -> None:
    assert catalog.document(0).startswith(ITEMS[0].title) and "Komödie, Drama" in catalog.document(0)
    assert "2001" in catalog.document(0)


def test_an_id_twice_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_catalog([Item("a", "x"), Item("a", "y")], tmp_path / "catalog.arrow")


def test_an_empty_catalog_is_a_catalog(tmp_path) -> None:
    write_catalog([], tmp_path / "catalog.arrow")
    catalog = ItemCatalog(tmp_path / "catalog.arrow")
    assert len(catalog) == 0 and catalog.rows(["a"]).tolist() == [-1] and catalog.row("a") is None
    assert catalog.label_names == () and catalog.item_ids(np.empty(0, np.int32)) == []


def test_the_fake_encoder_gives_unit_vectors_and_words_in_common_mean_closeness() -> None:
    encoder = HashEncoder(64)
    texts = ["a tale of water", "a tale of fire", "zzz qqq", "", "A TALE OF WATER"]
    vectors = encoder.encode(texts)
    assert vectors.dtype == np.float32 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(vectors, encoder.encode(texts)) and np.array_equal(vectors[0], vectors[4])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert encoder.encode([]).shape == (0, 64)


def test_reading_many_rows_does_not_import_pandas(tmp_path) -> None:
    write_catalog([Item("a", "First", "text"), Item("b", "Second")], tmp_path / "catalog.arrow")
    code = (
        "import sys; from pathlib import Path; import numpy as np; from models.catalog import ItemCatalog;"
        "catalog, rows = ItemCatalog(Path(sys.argv[1])), np.array([1, 0], np.int32);"
        "assert catalog.item_ids(rows) == ['b', 'a'] and catalog.documents(rows) == ['Second', 'First. text'];"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0
