"""Ray for offline work: one that is there, or one of our own for a while.

There may be the one that `RAY_ADDRESS` names (in a job of a Ray cluster), or the cluster of this state folder. Called
by commands that run Ray Data or train in several processes. Nothing listens for HTTP in a Ray of our own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from cluster.config import Settings
from cluster.ledger import Ledger, StateLocked
from cluster.ray_options import RayOptions, address_file, environment
from cluster.ray_runtime import RayRuntime, prepare, verify_packages
from cluster.stack import Say, ray_options


@contextmanager
def job_ray(settings: Settings, *, say: Say = lambda _: None) -> Iterator[None]:
    """Connect this process to Ray for as long as the block runs.

    Raises StateLocked when another process holds the state folder without a Ray to join (it is starting or stopping).
    """
    options = ray_options(settings)
    if given := os.environ.get("RAY_ADDRESS"):
        # Somebody else's Ray, with its own flags and token: nothing of ours is set.
        with _joined(options, given):
            yield
        return
    ledger = Ledger(settings.state)
    address = address_file(settings.state)
    with ExitStack() as stack:
        try:
            stack.enter_context(ledger.lock())
        except StateLocked:
            if not address.is_file():
                raise
            os.environ.update(environment(options))
            stack.enter_context(_joined(options, address.read_text().strip()))
        else:
            ledger.end_all()
            say("starting Ray for this job")
            prepare(options)
            ledger.record(os.getpid(), "raycommend job", "driver")
            runtime = RayRuntime(options, ledger=ledger)
            stack.callback(runtime.shutdown)
            runtime.start(http=False)
        yield


def training_ray(settings: Settings, *, say: Say = lambda _: None) -> AbstractContextManager[None]:
    """Return `job_ray` where a compressed ranker is trained whose id vectors lie in several actors, else nothing."""
    of = settings.pipelines
    return job_ray(settings, say=say) if of.train_ranker and of.training.id_shards > 1 else nullcontext()


@contextmanager
def _joined(options: RayOptions, address: str) -> Iterator[None]:
    verify_packages()
    import ray

    before = os.getcwd()
    options.state.mkdir(parents=True, exist_ok=True)
    # As `up` does: Ray puts the driver's folder on every worker's path.
    os.chdir(options.state)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, namespace="raycommend")
        yield
    finally:
        ray.shutdown()
        os.chdir(before)
