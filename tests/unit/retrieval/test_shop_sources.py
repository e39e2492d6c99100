"""Sources of a shop: what is in demand now outweighs what was popular once."""

import numpy as np

from models.behaviour.statistics import Statistics
from models.candidates import Source
from models.retrieval.settings import RetrievalSettings
from models.retrieval.sources import CountSource, RepeatSource
from models.retrieval.state import UserState

DAY_MS = 86_400_000


def statistics(*recent: float) -> Statistics:
    size = len(recent)
    return Statistics(
        popularity=np.full(size, 9, np.float32),
        recent=np.array(recent, np.float32),
        users=np.ones(size, np.int32),
        first_ms=np.zeros(size, np.int64),
        as_of_ms=np.array([DAY_MS], np.int64),
    )


def state(rows: list[int], days: list[int]) -> UserState:
    none = np.empty(0, np.int32)
    return UserState(np.array(rows, np.int32), np.array(days, np.int64) * DAY_MS, none, none, 100 * DAY_MS, None)


def test_repeats_add_up_and_fade_and_need_demand() -> None:
    counts = statistics(4.0, 4.0, 1.0, 0.0)
    settings = RetrievalSettings(repeat_half_life_days=10.0, repeat_trend_power=0.5)
    opinion = RepeatSource(counts, settings).opinion(state([0, 1, 1, 2, 3], [10, 0, 10, 0, 0]))
    assert opinion is not None
    np.testing.assert_allclose(opinion.of(np.arange(4, dtype=np.int32)), [1.0, 3.0, 1.0, 0.0])
    assert opinion.top(9, np.ones(4, bool)).tolist() == [1, 0, 2]


def test_without_a_power_demand_changes_nothing() -> None:
    opinion = RepeatSource(statistics(0.0, 5.0), RetrievalSettings()).opinion(state([0, 1], [0, 0]))
    assert opinion is not None
    np.testing.assert_allclose(opinion.of(np.arange(2, dtype=np.int32)), [1.0, 1.0])


def test_trending_by_power_lets_the_head_stand_out_more_than_by_logarithm() -> None:
    counts, rows = np.array([100.0, 10.0, 1.0], np.float32), np.arange(3, dtype=np.int32)
    anyone = state([], [])
    by_log = CountSource(Source.trending, counts).opinion(anyone).of(rows)
    by_power = CountSource(Source.trending, counts, power=1.0).opinion(anyone).of(rows)
    assert by_power[0] / by_power[1] == 10 > by_log[0] / by_log[1] > 1
