"""The benchmarks there are: name → where the function lives. Importing this imports no benchmark.

A new benchmark is one line here and one function `bench(context: BenchContext) -> None`. Measures that only it needs
are registered with `@measure` in its own module, which `verify` imports through this table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from loadtests.bench.harness import BenchContext

BenchFunction = Callable[["BenchContext"], None]


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark: `module:function` and what it tells, in a sentence."""

    name: str
    where: str
    summary: str

    def load(self) -> BenchFunction:
        """Import its module and return the function."""
        module, _, function = self.where.partition(":")
        return cast(BenchFunction, getattr(importlib.import_module(module), function))


def _table(*benches: Bench) -> dict[str, Bench]:
    return {bench.name: bench for bench in benches}


BENCHES = _table(
    Bench("client", "loadtests.bench.client:bench", "the load client's own ceiling, beside wrk where it is installed"),
    Bench("explain", "loadtests.bench.explain:bench", "reasons: truth by two checkers, variety, cost over the engine"),
    Bench(
        "features", "loadtests.bench.features:bench", "one user's features beside a plain redis-py pipeline of the same"
    ),
    Bench("freshness", "loadtests.bench.freshness:bench", "how soon an event or a new item shows in the next answer"),
    Bench(
        "ids",
        "loadtests.bench.ids:bench",
        "learned id vectors: memory and time of a step, in one process and in shards",
    ),
    Bench("ranker", "loadtests.bench.ranker:bench", "the rankers in process, and the text ranker beside its library"),
    Bench(
        "retrieval", "loadtests.bench.retrieval:bench", "the vector index beside bare FAISS, 10,000 to a million items"
    ),
    Bench("reembed", "loadtests.bench.reembed:bench", "the embedding job beside bare encode, 1 % of changes, memory"),
    Bench("swap", "loadtests.bench.swap:bench", "five swaps of the release and a rollback under load"),
    Bench("quality", "loadtests.bench.quality:bench", "recommendation quality beside baselines, by the protocol"),
    Bench(
        "http", "loadtests.bench.http:bench", "a running cluster: highest rate within the objective, latency by stage"
    ),
)
