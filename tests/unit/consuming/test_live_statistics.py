"""Folding events into live statistics: any order, any batches, any bytes; bounded; mapped onto a release."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.behaviour.live import ItemState, add_logs, decode_state, fold, items_of
from models.behaviour.snapshot import LiveStatistics, SnapshotInvalid, merge
from models.behaviour.statistics import Statistics
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import Event, EventType
from models.store.streams import Previous, StreamEntry

DAY = 86_400_000
HALF = 14.0 * DAY
NOW = 1_760_000_000_000


def entry(
    item: str | None, *, kind: EventType = EventType.click, at: int = NOW, new: bool = True, before: str | None = None
) -> StreamEntry:
    previous = None if before is None else Previous(before, at - 1)
    return StreamEntry(f"{NOW}-1", Event("e", "u", kind, at, item), new=new, previous=previous)


def folded(entries: list[StreamEntry], *, followers: int = 32) -> dict[str, ItemState]:
    return fold({}, entries, half_life_ms=HALF, followers=followers)


def test_an_event_counts_half_after_one_half_life() -> None:
    live = merge([folded([entry("a", at=NOW - 14 * DAY), entry("a", at=NOW), entry("b")])], half_life_ms=HALF)
    assert live.item_ids == ("a", "b") and live.as_of_ms == NOW and live.events == 3
    assert live.decayed[:, EventType.click].tolist() == pytest.approx([1.5, 1.0])
    assert live.counts[:, EventType.click].tolist() == [2.0, 1.0]
    assert live.first_ms.tolist() == [NOW - 14 * DAY, NOW]


def test_a_date_in_the_future_buys_nothing_and_one_of_1970_costs_nothing() -> None:
    live = merge([folded([entry("a", at=NOW + 900 * DAY), entry("b", at=0), entry("c")])], half_life_ms=HALF)
    assert live.as_of_ms == NOW
    assert live.decayed[:, EventType.click].tolist() == pytest.approx([1.0, 0.0, 1.0])


def test_each_type_is_counted_apart_and_only_positive_ones_make_users_and_transitions() -> None:
    states = folded(
        [
            entry("a", kind=EventType.impression),
            entry("a", kind=EventType.hide, before="b"),
            entry("a", kind=EventType.purchase, before="b"),
            entry("a", kind=EventType.purchase, new=False, before="a"),
            entry(None, kind=EventType.search),
            StreamEntry(f"{NOW}-1", None, reason="poison"),
        ]
    )
    assert states["a"].counts == {EventType.impression: 1, EventType.hide: 1, EventType.purchase: 2}
    assert (states["a"].users, states["a"].followers) == (1, {})
    assert list(states["b"].followers) == ["a"] and not states["b"].counts


def test_the_items_to_be_read_are_the_items_that_change() -> None:
    entries = [entry("a", before="b"), entry("c"), entry(None, kind=EventType.search), entry("a")]
    assert set(items_of(entries)) == set(folded(entries)) == {"a", "b", "c"}


def test_folding_in_batches_is_folding_at_once_to_the_last_bit() -> None:
    chance = random.Random(4)
    entries = [
        entry(f"i{chance.randrange(9)}", at=NOW - chance.randrange(90 * DAY), before=f"i{chance.randrange(9)}")
        for _ in range(400)
    ]
    whole, stored = folded(entries, followers=4), {}
    for start in range(0, 400, 7):
        known = {i: s for i, v in stored.items() if (s := decode_state(v)) is not None}
        changed = fold(known, entries[start : start + 7], half_life_ms=HALF, followers=4)
        stored |= {i: s.encode() for i, s in changed.items()}
    assert stored == {i: s.encode() for i, s in whole.items()}
    chance.shuffle(entries)
    shuffled = folded(entries)
    for item_id, state in whole.items():
        assert shuffled[item_id].counts == state.counts
        assert shuffled[item_id].weights[EventType.click] == pytest.approx(state.weights[EventType.click], abs=1e-9)


def test_followers_are_bounded_and_the_strongest_stay() -> None:
    entries = [entry(f"i{i}", at=NOW - i * DAY, before="a") for i in range(300)]
    assert sorted(folded(entries, followers=3)["a"].followers) == ["i0", "i1", "i2"]
    assert not folded(entries, followers=0)["a"].followers


@given(st.floats(-2000, 2000), st.floats(-2000, 2000))
def test_logs_add_like_numbers(a: float, b: float) -> None:
    total = add_logs(a, b)
    assert total == add_logs(b, a) and max(a, b) <= total <= max(a, b) + 1
    if abs(a) < 500 and abs(b) < 500:
        assert math.isclose(2.0**total, 2.0**a + 2.0**b, rel_tol=1e-9)


@given(st.binary(max_size=80), st.integers(0, 60), st.integers(0, 255))
def test_no_bytes_crash_a_reader(noise: bytes, at: int, byte: int) -> None:
    decode_state(noise)
    value = bytearray(folded([entry("a", before="b"), entry("c", before="b")])["b"].encode())
    assert decode_state(bytes(value)) is not None
    value[at % len(value)] = byte
    decode_state(bytes(value))
    assert decode_state(bytes(value[:-1])) is None


def test_buckets_add_up_and_survive_the_bytes() -> None:
    one = folded([entry("a"), entry("b", before="a"), entry("a", new=False)])
    two = folded([entry("a"), entry("b", before="a"), entry("z", kind=EventType.dislike)])
    live = LiveStatistics.from_bytes(merge([one, two], half_life_ms=HALF).to_bytes())
    assert live.item_ids == ("a", "b", "z")
    assert live.users.tolist() == [2, 2, 0]
    start, end = live.offsets[0], live.offsets[1]
    assert [live.item_ids[i] for i in live.followers[start:end]] == ["b"]
    assert live.weights[start:end].tolist() == [2.0]
    empty = LiveStatistics.from_bytes(merge([], half_life_ms=HALF).to_bytes())
    assert (len(empty), empty.as_of_ms, empty.events) == (0, 0, 0)


@pytest.mark.parametrize("damage", [lambda b: b[:-30], lambda b: b"", lambda b: b"PK" + b[9:]])
def test_a_damaged_snapshot_is_refused(damage) -> None:
    body = merge([folded([entry("a")])], half_life_ms=HALF).to_bytes()
    with pytest.raises(SnapshotInvalid):
        LiveStatistics.from_bytes(damage(body))


def test_live_counts_are_added_to_a_release_and_unknown_items_wait(tmp_path) -> None:
    write_catalog([Item("a", "A"), Item("b", "B")], tmp_path / "catalog.arrow")
    before = Statistics(
        np.array([5, 9], np.float32),
        np.array([1, 2], np.float32),
        np.array([3, 4], np.int32),
        np.array([7, 8], np.int64),
        np.array([99], np.int64),
    )
    events = [entry("b"), entry("b", kind=EventType.hide), entry("new")]
    after, unknown = merge([folded(events)], half_life_ms=HALF).added_to(before, ItemCatalog(tmp_path))
    assert (after.popularity.tolist(), after.recent.tolist(), after.users.tolist()) == ([5, 10], [1, 3], [3, 5])
    assert (after.first_ms.tolist(), after.as_of_ms.tolist(), unknown) == ([7, 8], [NOW], 1)
    assert before.popularity.tolist() == [5, 9]
    write_catalog([Item("a", "A"), Item("new", "N")], tmp_path / "catalog.arrow")
    later, unknown = merge([folded(events)], half_life_ms=HALF).added_to(before, ItemCatalog(tmp_path))
    assert (later.popularity.tolist(), unknown) == ([5, 10], 1)
