"""Benchmark `ids`: memory and time of learned id vectors, in one process and in shards that Ray actors hold.

The real step of the training over made-up lists whose items are drawn from a table of so many; every row is filled and
kept for early stopping first, as after a long training. Memory is the peak of resident pages, those shared with Ray's
object store too: of a shard's process with its libraries, of the trainer what came on top. Called by the harness.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.ray_job import job_ray
from loadtests.bench.harness import BenchContext
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.id_vectors import WholeIds
from models.rankers.inputs import LABEL_SLOTS
from models.rankers.network import NetworkShape, initialise
from pipelines.training.examples import RankingLists, empty_lists
from pipelines.training.fit import ItemInputs, fit_attention
from pipelines.training.id_tables import IdTable, opened
from pipelines.training.settings import TrainingSettings

_TEXT, _NUMBERS, _LIST = 16, 2, 100


class IdsOptions(BaseModel):
    """Options of the `ids` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: int = Field(200_000, ge=100, le=50_000_000)
    """Items of the table."""
    shards: int = Field(4, ge=2, le=64)
    """Shards beside the table in one process."""
    steps: int = Field(10, ge=1, le=1000)
    """Steps of a round, of 64 lists each."""


def bench(context: BenchContext) -> None:
    """Run the benchmark `ids`."""
    options = context.options(IdsOptions)
    settings = Settings.model_validate(dict(context.settings))
    with job_ray(settings, say=context.tell):
        _measured(options.shards, 1000, 1, 1)  # libraries are loaded, and what they take is there before
        # Shards first: what one process took for a table may stay with it in part.
        for shards in (options.shards, 1):
            found = _measured(shards, options.ids, options.steps, context.rounds)
            context.tell(f"{shards} shards: {np.median(found.step_ms):.0f} ms a step")
            for name, values in (("trainer", [found.trainer_mb]), ("shard", found.shard_mb)):
                if values:
                    file = context.save_array(f"{name}-{shards}", values)
                    context.target(f"{name}_peak_mb_{shards}", "array_mean", file)
            file = context.save_array(f"step-{shards}", found.step_ms)
            context.target(f"step_ms_{shards}", "array_quantile", file, q=0.5)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a table took: the time of a step by round, the peaks of the trainer and of each process with a shard."""

    step_ms: list[float]
    trainer_mb: float
    shard_mb: list[float]


def _measured(shards: int, ids: int, steps: int, rounds: int) -> _Found:
    shape = NetworkShape(_TEXT, labels=0, numbers=_NUMBERS, features=len(FEATURE_NAMES), ids=ids)
    training = TrainingSettings(epochs=1)
    lists = _lists(ids, steps * training.batch_lists, shape.history)
    before = _peak_mb(anew=True)
    with opened(ids, shape.dim, shards) as table:
        assert table is not None
        _fill(table, ids, shape.dim)
        times = [_step_ms(table, shape, lists, training) for _ in range(rounds)]
        return _Found(times, _peak_mb() - before, [_peak_mb(pid) for pid in _actors()])


def _lists(ids: int, count: int, history: int) -> RankingLists:
    rng = np.random.default_rng(0)
    lists = empty_lists(count, _LIST)
    lists.rows[:] = rng.integers(0, ids, (count, _LIST))
    lists.features[:] = rng.standard_normal(lists.features.shape, dtype=np.float32)
    lists.merged[:] = lists.target[:] = 0
    lists.relevance[:, 0] = 1.0
    lists.history[:, 0] = rng.integers(1, ids + 1, (count, history))
    lists.user[:] = np.arange(count)
    return lists


def _fill(table: IdTable, ids: int, dim: int) -> None:
    """Give every slot a vector, the same one, and keep it: all pages of the table are taken then."""
    one = WholeIds(np.ones((2, dim), np.float32))
    table.take_over(one, np.ones(ids, np.int64))
    table.keep()


def _step_ms(table: IdTable, shape: NetworkShape, lists: RankingLists, training: TrainingSettings) -> float:
    """Return the time of a step, pull and push included."""
    ids = table.bounds[-1] - 1
    # The same content for all items: it takes no memory, and a step reads as much of it as of any.
    items = ItemInputs(
        np.broadcast_to(np.ones(_TEXT, np.float32), (ids, _TEXT)),
        np.broadcast_to(np.zeros(LABEL_SLOTS, np.int64), (ids, LABEL_SLOTS)),
        np.broadcast_to(np.ones(_NUMBERS, np.float32), (ids, _NUMBERS)),
        np.arange(1, ids + 1),
        table,
    )
    began = time.perf_counter()
    fit_attention(initialise(shape, seed=0), shape, items, lists, None, training, seed=0, table=table)
    return (time.perf_counter() - began) * 1e3 * training.batch_lists / len(lists)


def _actors() -> list[int]:
    """Return the processes of the shards, by the title that Ray gives them."""
    import psutil

    return [
        p.pid for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith("ray::IdShard")
    ]


def _peak_mb(pid: int | None = None, *, anew: bool = False) -> float:
    """Return the most resident memory a process had, this one where none is named; `anew` begins again from now."""
    of = Path("/proc") / ("self" if pid is None else str(pid))
    if anew:
        (of / "clear_refs").write_text("5")
    line = next(line for line in (of / "status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3
