"""The queue that concurrent calls of the ranker are held against."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtests.bench.ranker import queue_ratio


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
