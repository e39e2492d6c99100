"""The queue that concurrent calls of the ranker are held against."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtests.bench.harness import BenchContext
from loadtests.bench.ranker import Options, queue_ratio
from loadtests.bench.ranker_text import ndcg
from loadtests.schedule import LoadError


@pytest.fixture
def samples(tmp_path):
    def write(calls_ms):
        rows = [
            (r, arm, v)
            for r in range(3)
            for arm, values in (("service", [2.0] * 50), ("calls", calls_ms))
            for v in values
        ]
        columns = zip(*rows, strict=True)
        table = pa.table(dict(zip(("round", "arm", "value"), map(list, columns), strict=True)))
        pq.write_table(table, tmp_path / "samples.parquet")
        return tmp_path / "samples.parquet"

    return write


def test_calls_that_wait_only_for_those_before_them_are_as_slow_as_the_queue(samples):
    found = queue_ratio(samples([8.0] * 40), calls="calls", service="service", callers=4)
    assert found.value == pytest.approx(1.0)


def test_calls_that_wait_longer_are_slower_than_the_queue_by_that_much(samples):
    found = queue_ratio(samples([8.0] * 30 + [24.0] * 10), calls="calls", service="service", callers=4)
    assert found.value == pytest.approx(3.0)
    assert np.isfinite(found.value)


def test_a_queue_of_more_callers_than_requests_is_refused_in_one_sentence(tmp_path, samples):
    def ask(**options):
        return BenchContext("ranker", tmp_path, options, settings={}, tell=print).options(Options)

    with pytest.raises(LoadError, match="32 callers need at least as many requests, not 20"):
        ask(requests="20", callers="32")
    with pytest.raises(LoadError, match="requests: Input should be greater than or equal to 20"):
        ask(requests="2", callers="32")
    assert ask(requests="32", callers="32").callers == 32
    with pytest.raises(ValueError, match="50 service times in round 0 make no queue of 51 callers"):
        queue_ratio(samples([8.0] * 40), calls="calls", service="service", callers=51)


def test_ndcg_reads_the_place_of_the_one_right_item_and_ties_count_against_it():
    lists = [np.array([0.9, 0.1, 0.5], np.float32), np.array([0.9, 0.1, 0.5], np.float32), np.zeros(12, np.float32)]
    assert ndcg(lists, [0, 1, 3]).tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert ndcg([np.array([0.5, 0.5, 0.1], np.float32)], [0]).tolist() == pytest.approx([1 / np.log2(3)])
    assert ndcg(lists[:1], [1], k=2).tolist() == [0.0]
