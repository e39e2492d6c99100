"""Association rules: baskets, counts by hand, bounds, and what they hold for any log."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.behaviour.interactions import Interactions
from models.behaviour.rules import Rule, Rules, baskets_of, fit_rules, rules_of
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.events import EventLog, EventType

MINUTE = 60_000


@pytest.fixture
def catalog(tmp_path: Path) -> ItemCatalog:
    write_catalog([Item(name, name) for name in "abcdef"], tmp_path / CATALOG_FILE)
    return ItemCatalog(tmp_path)


def log(*events: tuple[str, str, int], type: EventType = EventType.purchase) -> EventLog:
    users, items, minutes = zip(*events, strict=True)
    return EventLog(
        np.array(users, object),
        np.array(items, object),
        np.full(len(events), type, np.uint8),
        np.ones(len(events), np.float32),
        np.array(minutes, np.int64) * MINUTE,
    ).sorted_by_time()


def invoices(*baskets: str) -> EventLog:
    """One invoice of one user a day, its lines at one time."""
    return log(*((f"u{n % 3}", item, n * 1440) for n, basket in enumerate(baskets) for item in basket))


def rows(found: list[Rule]) -> list[int]:
    return [rule.row for rule in found]


def test_support_confidence_and_lift_are_what_the_definitions_say(catalog) -> None:
    rules = fit_rules(invoices("abc", "ab", "abd", "ad", "c", "d", "e", "e"), catalog, minimum_support=2)
    by_row = {rule.row: rule for rule in rules.of(0)}
    # a is in 4 of 8 baskets, b in 3, both in 3.
    assert by_row[1] == Rule(1, 3, pytest.approx(3 / 4), pytest.approx((3 / 4) / (3 / 8)))
    assert {rule.row: rule for rule in rules.of(1)}[0] == Rule(0, 3, 1.0, pytest.approx(1.0 / (4 / 8)))
    assert by_row[3].support == 2 and rows(rules.of(0)) == [1, 3]
    assert rules.of(4) == [] and rules.of(5) == []


def test_a_pause_ends_a_basket_and_an_invoice_is_one(catalog) -> None:
    sitting = [("u1", "a", 0), ("u1", "b", 20), ("u1", "c", 45), ("u2", "d", 46), ("u1", "e", 200)]
    twice = log(*sitting, *((u, i, m + 10_000) for u, i, m in sitting))
    found = fit_rules(twice, catalog, gap_s=1800, minimum_support=2)
    assert rows(found.of(0)) == [1, 2]  # b and c, over two pauses of less than half an hour
    assert found.of(3) == [] and found.of(4) == []
    assert fit_rules(twice, catalog, gap_s=0, minimum_support=2).of(0) == []
    assert rows(fit_rules(invoices("ab", "ab", "c", "d"), catalog, gap_s=0, minimum_support=2).of(0)) == [1]


def test_bought_together_counts_purchases_alone_where_there_are_any(catalog) -> None:
    seen = [("u1", "a", 0), ("u1", "b", 1), ("u2", "a", 0), ("u2", "b", 1), ("u3", "c", 0), ("u3", "d", 0)]
    viewed = log(*seen, type=EventType.view)
    assert rows(fit_rules(viewed, catalog, minimum_support=2).of(0)) == [1]
    bought = invoices("ac", "ac", "b", "b")
    both = EventLog(
        *(np.concatenate([getattr(viewed, n), getattr(bought, n)]) for n in EventLog.__dataclass_fields__)
    ).sorted_by_time()
    assert rows(fit_rules(both, catalog, minimum_support=2).of(0)) == [2]


def test_what_is_together_no_more_often_than_by_chance_is_no_rule(catalog) -> None:
    found = fit_rules(invoices("ab", "ab", "a", "b"), catalog, minimum_support=1)
    # Expected together: 4 × (3/4) × (3/4) = 2.25 of 2.
    assert found.of(0) == []


def test_an_item_keeps_its_best_rules_alone(catalog) -> None:
    data = invoices("abcd", "abc", "ab", "abcd", "e", "e", "e", "e")
    whole = fit_rules(data, catalog, minimum_support=1).of(0)
    assert rows(whole) == [1, 2, 3]
    assert fit_rules(data, catalog, minimum_support=1, per_item=2).of(0) == whole[:2]
    assert rows(fit_rules(data, catalog, minimum_support=3).of(0)) == [1, 2]
    assert len(fit_rules(data, catalog, per_item=0).columns) == 0


def test_a_basket_as_long_as_the_catalog_is_cut_into_pieces() -> None:
    size = 1000
    taken = Interactions(np.zeros(size, np.int32), np.arange(size, dtype=np.int32), np.zeros(size, np.int64), 1, size)
    found = baskets_of(taken, gap_s=0, longest=300)
    assert np.bincount(found).tolist() == [300, 300, 300, 100]


def test_no_events_make_no_rules(catalog) -> None:
    found = fit_rules(EventLog.empty(), catalog)
    assert len(found) == 6 and [found.of(row) for row in range(6)] == [[]] * 6


def test_rules_survive_saving_and_are_absent_from_older_artifacts(catalog, tmp_path: Path) -> None:
    fitted = fit_rules(invoices("abc", "ab", "abd", "c", "e", "e"), catalog, minimum_support=1)
    (tmp_path / "rules").mkdir()
    fitted.save(tmp_path / "rules")
    loaded = Rules.load(tmp_path / "rules", items=6)
    assert [loaded.of(r) for r in range(6)] == [fitted.of(r) for r in range(6)] and any(fitted.of(0))
    assert Rules.load(tmp_path, items=6).of(0) == []


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 6))
def test_every_rule_equals_a_count_by_hand_and_none_is_missing(
    baskets: list[set[int]], minimum_support: int, per_item: int
) -> None:
    codes = np.repeat(np.arange(len(baskets)), [len(b) for b in baskets])
    taken = np.array([row for b in baskets for row in sorted(b)], np.int32)
    found = rules_of(codes, taken, 6, minimum_support=minimum_support, per_item=per_item)
    total = len(baskets)
    for a in range(6):
        with_a = [b for b in baskets if a in b]
        expected = {}
        for b in set(range(6)) - {a}:
            support = sum(b in basket for basket in with_a)
            share = sum(b in basket for basket in baskets) / total
            if support >= minimum_support and support * total > len(with_a) * sum(b in x for x in baskets):
                expected[b] = (support, support / len(with_a), support / len(with_a) / share)
        rules = found.of(a)
        assert len(rules) == min(per_item, len(expected))
        for rule in rules:
            assert (rule.support, rule.confidence, rule.lift) == pytest.approx(expected[rule.row], rel=1e-6)
