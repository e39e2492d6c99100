"""How many threads numpy's and torch's linear algebra may use. Called by whatever serves many requests side by side.

A request of a recommender is many small products: waking a second thread for one of them costs more than it brings,
and where the cores are busy the first thread then waits for the second one to be scheduled (measured on a loaded
machine: 0.5 ms became 12 ms). Parallelism comes from requests, not from within one.
"""

from __future__ import annotations


def compute_on_one_thread() -> None:
    """Give every product of this process, from now on, the thread that asks for it."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(limits=1, user_api="blas")
    torch.set_num_threads(1)
