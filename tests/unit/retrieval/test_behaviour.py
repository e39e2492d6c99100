from pathlib import Path

import numpy as np
import pytest

from models.behaviour.als import AlsModel, fit_als
from models.behaviour.behaviour import Behaviour, BehaviourSettings, fit_behaviour
from models.behaviour.ease import fit_ease
from models.behaviour.interactions import Interactions, interactions_of
from models.behaviour.replay import next_items
from models.behaviour.sequences import index_sequences
from models.behaviour.statistics import fit_statistics
from models.behaviour.transitions import fit_transitions
from models.catalog import ItemCatalog
from models.events import EventLog, EventType


def interactions(*sequences: list[int], items: int = 6) -> Interactions:
    """One user per sequence, one event a second."""
    users = np.concatenate([np.full(len(s), n) for n, s in enumerate(sequences)]).astype(np.int32)
    rows = np.concatenate(sequences).astype(np.int32)
    return Interactions(users, rows, np.arange(len(rows), dtype=np.int64) * 1000, len(sequences), items)


def events(*rows: tuple[str, str, EventType, int]) -> EventLog:
    user, item, types, times = zip(*rows, strict=True)
    size = len(rows)
    return EventLog(
        np.array(user, object), np.array(item, object), np.array(types, np.uint8), np.ones(size, np.float32),
        np.array(times, np.int64),
    ).sorted_by_time()  # fmt: skip


def test_transitions_count_distance_direction_and_shrinkage() -> None:
    found = fit_transitions(interactions([0, 1, 2]), steps=2, shrinkage=1.0, distance_power=1.0, backward=0.5)
    # Row 0: forward to 1 (1) and to 2 over two steps (1/2); mass 1.5, shrunk by 1.
    assert found.weight(0, 1) == pytest.approx(1 / 2.5) and found.weight(0, 2) == pytest.approx(0.5 / 2.5)
    # Row 1: half a count back to 0, one on to 2.
    assert found.weight(1, 0) == pytest.approx(0.5 / 2.5) and found.weight(1, 2) == pytest.approx(1 / 2.5)
    assert found.weight(5, 0) == 0.0


def test_transitions_never_cross_from_one_user_to_the_next() -> None:
    found = fit_transitions(interactions([0, 1], [2, 3]), backward=0.0)
    assert found.weight(1, 2) == 0.0 and found.weight(2, 3) > 0


def test_ease_agrees_with_its_definition() -> None:
    data = interactions([0, 1, 2], [0, 1], [2, 3], [3, 4])
    x = np.zeros((4, 6))
    x[data.users, data.rows] = 1
    inverse = np.linalg.inv(x.T @ x + 2.0 * np.eye(6))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)
    scores = fit_ease(data, ridge=2.0).fold_in(np.array([0, 3], np.int32), np.array([1.0, 0.5], np.float32))
    np.testing.assert_allclose(scores.of(np.arange(6, dtype=np.int32)), expected[0] + 0.5 * expected[3], atol=1e-6)


def test_neighbours_who_share_more_count_more_and_their_next_items_most() -> None:
    data = interactions([0, 1, 2], [1, 3], [4, 5])
    rows, scores = index_sequences(data).neighbours(np.array([0, 1], np.int32), np.array([0.8, 1.0], np.float32))
    total = np.bincount(rows, weights=scores, minlength=6)
    assert total[2] > total[3] > 0 and total[4] == total[5] == 0


def test_only_the_latest_takers_of_an_item_are_compared() -> None:
    data = interactions([0, 1], [0, 2], [0, 3])
    rows, _ = index_sequences(data).neighbours(np.array([0], np.int32), np.ones(1, np.float32), per_item=1)
    assert set(rows.tolist()) == {3}


def test_als_folds_a_user_in_near_those_with_the_same_taste_and_survives_the_disk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    halves = [rng.permutation(10)[:6] + 10 * (n % 2) for n in range(80)]
    model = fit_als(interactions(*halves, items=20), dimension=2)
    model.save(tmp_path)
    for each in (model, AlsModel.load(tmp_path)):
        scores = each.fold_in(np.array([0, 1], np.int32), np.ones(2, np.float32)).of(np.arange(20, dtype=np.int32))
        assert scores[2:10].mean() > 0.3 and abs(scores[10:].mean()) < 0.1


def test_large_catalogs_take_als_and_round_trip(catalog: ItemCatalog, log: EventLog, tmp_path: Path) -> None:
    made = fit_behaviour(log, catalog, BehaviourSettings(ease_up_to_items=10, als_dimension=8))
    made.save(tmp_path)
    loaded = Behaviour.load(tmp_path)
    assert made.collaborative.kind == loaded.collaborative.kind == "als"
    assert loaded.link(3, 4) == made.link(3, 4) > 0


def test_an_artifact_of_an_unknown_kind_is_refused(catalog: ItemCatalog, log: EventLog, tmp_path: Path) -> None:
    fit_behaviour(log, catalog).save(tmp_path)
    (tmp_path / "behaviour.json").write_text('{"collaborative": "oracle"}')
    with pytest.raises(ValueError, match="rebuild the behaviour artifact"):
        Behaviour.load(tmp_path)


def test_only_positive_events_on_known_items_are_fitted(catalog: ItemCatalog) -> None:
    log = events(
        ("u", "i1", EventType.click, 1), ("u", "i2", EventType.dislike, 2), ("u", "i3", EventType.impression, 3),
        ("u", "gone", EventType.click, 4), ("v", "i1", EventType.purchase, 5),
    )  # fmt: skip
    data = interactions_of(log, catalog)
    assert [catalog.item_id(int(r)) for r in data.rows] == ["i1", "i1"] and data.n_users == 2


def test_statistics_count_decay_and_distinct_users(catalog: ItemCatalog) -> None:
    day = 86_400_000
    log = events(
        ("u", "i1", EventType.click, 0), ("u", "i1", EventType.click, 7 * day), ("v", "i2", EventType.click, 14 * day)
    )
    found = fit_statistics(log, catalog, half_life_days=7.0)
    one, two = catalog.rows(["i1", "i2"])
    assert (found.popularity[one], found.users[one], found.users[two]) == (2, 1, 1)
    assert found.recent[one] == pytest.approx(0.75) and found.recent[two] == pytest.approx(1.0)
    assert found.first_ms[one] == 0 and found.as_of_ms[0] == 14 * day


def test_replay_shows_each_example_only_what_came_before() -> None:
    log = events(
        ("u", "a", EventType.click, 1), ("u", "b", EventType.hide, 2), ("u", "c", EventType.click, 3),
        ("u", "a", EventType.click, 4), ("u", "d", EventType.impression, 5), ("v", "a", EventType.click, 1),
    )  # fmt: skip
    (only,) = next_items(log)
    assert (only.user.item_ids, only.item_id, only.now_ms) == (("a", "b"), "c", 3)
    assert len(only.user.seen) == 2
