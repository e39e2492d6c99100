"""Builds vector indexes: the kind by the size of the catalog, its search parameters by measured recall.

A flat index is exact and fast enough for small catalogs. Above, rows are clustered and only the nearest clusters are
read (IVF); for large catalogs what is read is compressed (4-bit product quantisation, scanned in registers) and the
best are scored again from half-precision copies. How many clusters are read is not guessed: the cheapest setting that
finds the wanted share of the true nearest rows for held-out queries is taken and recorded. After Johnson, Douze, Jégou,
"Billion-scale similarity search with GPUs" (2017), and André et al., "Quicker ADC" (2019). Called by the build, by
`AlsModel` and by training; `models.index` searches what this makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.index import Vectors, gpus

IndexKind = Literal["flat", "ivf_flat", "ivf_pq", "hnsw"]
FLAT_UP_TO = 20_000
"""Rows up to which everything is compared: about 2 ms at 384 dimensions."""
IVF_FLAT_UP_TO = 50_000
"""Rows up to which clusters hold whole vectors; above, memory and bandwidth are worth the compression."""
RECALL = 0.98
"""Share of the true nearest rows that an index finds for held-out queries, unless the caller wants another."""
AT = 100
"""How many nearest rows recall looks at."""
QUERIES = 256
"""Held-out queries behind the recall."""
_PER_LIST = 64
"""Training rows per cluster."""
_REFINED_BYTES = 2
"""Of one dimension of the copies that are scored again."""
_JUMP = 4
"""What a byte read from a random place costs beside one of a scan."""


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """A FAISS index, and for the manifest: `kind`, `factory`, search parameters, and the recall behind them."""

    index: Any
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    kind: IndexKind
    factory: str
    lists: int = 0


def kind_for(count: int, dimension: int, *, gpu: bool = False) -> IndexKind:
    """Return the kind that suits a catalog; on a GPU clusters hold whole vectors, FAISS has no 4-bit codes there."""
    if count <= FLAT_UP_TO:
        return "flat"
    return "ivf_flat" if count <= IVF_FLAT_UP_TO or gpu or dimension % 4 else "ivf_pq"


def build_faiss(vectors: Vectors, *, kind: IndexKind | None = None, recall: float = RECALL) -> BuiltIndex:
    """Build an inner-product index over `vectors` (float32[rows, dim], contiguous) on the CPU.

    Deterministic for the same vectors on machines alike, except `hnsw`, whose graph depends on the order in which
    threads add rows. Minutes of work for a million rows.

    Args:
        vectors: What is searched; row numbers are ids.
        kind: None takes `kind_for`, asking this machine whether FAISS finds a GPU. `hnsw` is never chosen: it is here
            to be compared.
        recall: Share of the true `AT` nearest rows to be found. Where no setting reaches it, the most thorough one is
            taken; what was reached is in the facts.
    """
    import faiss

    count, dimension = vectors.shape
    plan = _plan(kind or kind_for(count, dimension, gpu=gpus(faiss) > 0), count, dimension)
    index = faiss.index_factory(dimension, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        sample = np.random.default_rng(0).permutation(count)[: plan.lists * _PER_LIST]
        index.train(vectors[np.sort(sample)])
    index.add(vectors)
    facts: dict[str, Any] = {"kind": plan.kind, "factory": plan.factory}
    if plan.kind != "flat":
        facts |= _choose(index, vectors, plan, recall)
    return BuiltIndex(index, facts)


def _plan(kind: IndexKind, count: int, dimension: int) -> _Plan:
    if kind == "flat":
        return _Plan(kind, "Flat")
    if kind == "hnsw":
        return _Plan(kind, "HNSW32,Flat")
    if kind == "ivf_flat":
        lists = max(1, min(int(4 * np.sqrt(count)), count // 39))
        return _Plan(kind, f"IVF{lists},Flat", lists)
    # Codes are scanned so fast that finding the clusters would cost more than reading larger ones. Two dimensions a
    # code: with four, a million texts of 384 dimensions end at a recall of 0.92 however many are read.
    lists = max(1, min(int(2 * np.sqrt(count)), count // 39))
    return _Plan(kind, f"IVF{lists},PQ{dimension // 2}x4fs,Refine(SQfp16)", lists)


def _choose(index: Any, vectors: Vectors, plan: _Plan, wanted: float) -> dict[str, Any]:
    """Set the cheapest parameters that reach the wanted recall, and return them with what they reached."""
    import faiss

    queries = held_out_queries(vectors)
    at = min(AT, len(vectors))
    least = faiss.knn(queries, vectors, at, metric=faiss.METRIC_INNER_PRODUCT)[0][:, -1]
    chosen: dict[str, int] = {}
    reached = 0.0
    for chosen in _settings(plan, *vectors.shape):
        for name, value in chosen.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        reached = _recall(vectors, queries, index.search(queries, at)[1], least)
        if reached >= wanted:
            break
    return {**chosen, "recall": round(reached, 4), "recall_wanted": wanted, "recall_at": at, "queries": len(queries)}


def _settings(plan: _Plan, count: int, dimension: int) -> Iterator[dict[str, int]]:
    """Yield parameters from the cheapest to the most thorough, by the bytes that a search reads."""
    if plan.kind == "hnsw":
        yield from ({"efSearch": width} for width in (100, 128, 192, 256, 384, 512, 768, 1024))
        return
    probes = sorted({min(plan.lists, (2 << power) * part // 4) for power in range(31) for part in (2, 3)})
    if plan.kind == "ivf_flat":
        yield from ({"nprobe": n} for n in probes)
        return
    row = count / plan.lists * dimension / 4
    again = AT * dimension * _REFINED_BYTES * _JUMP
    grid = [(n * row + k * again, n, k) for n in probes for k in (2, 4, 8, 16, 32)]
    yield from ({"nprobe": n, "k_factor_rf": k} for _, n, k in sorted(grid))


def held_out_queries(vectors: Vectors, *, count: int = QUERIES, seed: int = 1) -> Vectors:
    """Return `count` vectors like those that serving asks: means of one to ten rows, the later ones counting more."""
    rng = np.random.default_rng(seed)
    queries = np.empty((count, vectors.shape[1]), np.float32)
    for i in range(count):
        rows = rng.integers(0, len(vectors), rng.integers(1, 11))
        queries[i] = 0.8 ** np.arange(len(rows))[::-1] @ vectors[rows]
    return queries


def _recall(vectors: Vectors, queries: Vectors, found: npt.NDArray[np.int64], least: npt.NDArray[np.float32]) -> float:
    """Share of found rows whose score is among the best: rows that tie with the last of them count as well."""
    hits = 0
    for query, rows, bound in zip(queries, found, least, strict=True):
        scores = vectors[rows[rows >= 0]] @ query
        hits += int((scores >= bound - 1e-5 * abs(bound)).sum())
    return hits / found.size
