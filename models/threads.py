"""How many threads linear algebra may use. Called by whatever computes many small requests in one process.

A request of a recommender is many small products: waking a second thread for one of them costs more than it brings,
and on busy cores the first thread then waits until the second one runs. Parallelism comes from requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def linear_algebra_threads(count: int) -> Iterator[None]:
    """Let each product of numpy and torch in this process use `count` threads, until the end of the block."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(limits=count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
