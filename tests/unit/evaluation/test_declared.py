"""Cases of users nobody knows who declare what they like."""

import numpy as np

from models.catalog import Item, ItemCatalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.ids import hash64
from models.retrieval.query import RetrievalQuery
from pipelines.evaluation.declared import FOLDS, declaration_of, strangers, undeclared

GENRES = ("Drama", "Western")
CATALOG = ItemCatalog.of([Item(f"i{n}", f"Film {n}", labels={"genre": (GENRES[n % 2],)}) for n in range(60)])
ENCODER = HashEncoder()


def make_log(users: int = 8, each: int = 40) -> EventLog:
    """User n rates items of genre n mod 2 with five and others with one, in the order of items."""
    rows = [(f"u{u}", n, 5.0 if n % 2 == u % 2 else 1.0) for u in range(users) for n in range(each)]
    size = len(rows)
    return EventLog(
        np.array([u for u, _, _ in rows], object), np.array([f"i{n}" for _, n, _ in rows], object),
        np.full(size, EventType.rating, np.uint8), np.array([v for _, _, v in rows], np.float32),
        1_000_000 + np.tile(np.arange(each), users).astype(np.int64),
    )  # fmt: skip


def test_every_user_is_a_stranger_once_and_is_asked_for_what_they_liked_after_what_they_declare() -> None:
    split = strangers(make_log(), CATALOG, ENCODER)
    asked = []
    for fold in FOLDS:
        found = split(fold)
        users = {case.user_id for case in found.cases}
        assert len(users) == len(found.cases) == 2 and not users & set(found.train.user_ids)
        for case in found.cases:
            odd = int(case.user_id[1:]) % 2
            assert case.targets == {f"i{n}" for n in range(40) if n % 2 == odd} - {f"i{2 * n + odd}" for n in range(5)}
            assert case.user.declared is not None and case.user.declared.labels == (("genre", GENRES[odd]),)
            assert len(case.user) == 0 and not case.user.known
            assert set(case.user.seen.tolist()) == {hash64(f"i{2 * n + odd}") for n in range(5)}
            np.testing.assert_allclose(case.user.declared.vector, ENCODER.encode([GENRES[odd]])[0])
        asked += sorted(users)
    assert sorted(asked) == [f"u{n}" for n in range(8)]


def test_with_events_one_to_four_of_the_items_are_known_and_the_question_is_the_same() -> None:
    plain, known = strangers(make_log(), CATALOG, ENCODER)(1), strangers(make_log(), CATALOG, ENCODER, events=True)(1)
    for one, other in zip(plain.cases, known.cases, strict=True):
        assert (one.user_id, one.targets, one.now_ms) == (other.user_id, other.targets, other.now_ms)
        assert 1 <= len(other.user) <= 4 and other.user.known and not set(other.user.item_ids) & other.targets
        assert set(other.user.seen.tolist()) == set(one.user.seen.tolist())
        assert {hash64(i) for i in other.user.item_ids} < set(one.user.seen.tolist())


def test_who_liked_too_little_is_not_asked() -> None:
    split = strangers(make_log(each=18), CATALOG, ENCODER)
    assert all(not split(fold).cases and len(split(fold).train) == 6 * 18 for fold in FOLDS)


def test_labels_come_by_how_many_items_carry_them_and_nothing_liked_declares_nothing() -> None:
    items = [Item("a", "A", labels={"x": ("1", "2")}), Item("b", "B", labels={"x": ("2", "3"), "y": ("z",)})]
    catalog = ItemCatalog.of([*items, Item("c", "C", labels={"x": ("4", "2")}), Item("d", "D")])
    found = declaration_of(["a", "b", "c", "d", "gone"], catalog, ENCODER, now_ms=7)
    assert found.labels == (("x", "2"), ("x", "1"), ("x", "3"), ("y", "z")) and found.declared_ms == 7
    assert not declaration_of(["d"], catalog, ENCODER, now_ms=7)


def test_the_same_method_is_asked_as_if_nothing_had_been_declared() -> None:
    (case, _) = strangers(make_log(), CATALOG, ENCODER)(0).cases
    heard: list[RetrievalQuery] = []

    def build(train: EventLog):
        return lambda query, k: heard.append(query) or ["i1"]

    assert undeclared(build)(make_log())(RetrievalQuery(n=1, now_ms=1, user=case.user), 1) == ["i1"]
    assert heard[0].user.declared is None and heard[0].user.seen is case.user.seen
