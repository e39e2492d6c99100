"""Benchmark `retrieval`: our `VectorIndex` beside bare FAISS with the very same index, at catalogs of several sizes.

Vectors are the embeddings of real items, and for larger catalogs copies of them with noise. Half of the queries are
content vectors of real users (the decayed mean of their last items, as the semantic source asks), half are further
noisy items. The index is built, written and loaded by the code that serves; both arms search it with one thread, in
turn. Recall compares with exhaustive search. Called by the harness.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from loadtests.bench.harness import BenchContext
from loadtests.bench.interleave import timed_ms
from loadtests.bench.measures import MEASURES, measure
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError
from loadtests.stats import Estimate
from models.index import FaissIndex, Vectors, load_faiss, write_faiss
from models.index_build import BuiltIndex, IndexKind, build_faiss

MILLION = 1_000_000
AT = 100
_LAST, _DECAY = 10, 0.8
_BLOCK = 50_000


class RetrievalOptions(BaseModel):
    """Options of the `retrieval` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sizes: str = "10000,100000,1000000"
    """Catalog sizes; a million items of 384 dimensions take 1.5 GB of disk and 3 GB of memory for some minutes."""
    dataset: str = "movielens-100k"
    """Imported data set whose items and users are the base; imported first where it has a default source."""
    noise: float = Field(0.5, ge=0, le=2)
    """Length of the noise beside that of an embedding, which is 1: 0.5 leaves a cosine of 0.89 to the original."""
    queries: int = Field(500, ge=10, le=10_000)
    """Per arm and round; every query is asked once by each arm."""
    recall: float = Field(0.98, gt=0, le=1)
    """What the build is asked for on its own held-out queries."""
    kind: str | None = None
    """Index kind in place of the one that suits the size."""
    seed: int = 0
    quick: bool = False
    """Seconds instead of minutes: two small catalogs of made-up vectors. Its figures mean nothing."""


@measure
def highest_paired_ratio(*paths: Path, over: str, under: str, statistic: str = "median") -> Estimate:
    """`paired_ratio` of the file where it is highest."""
    return max((MEASURES["paired_ratio"](p, over=over, under=under, statistic=statistic) for p in paths), key=_value)


@measure
def lowest_mean(*paths: Path) -> Estimate:
    """`array_mean` of the file where it is lowest."""
    return min((MEASURES["array_mean"](p) for p in paths), key=_value)


def _value(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value


def bench(context: BenchContext) -> None:
    """Run the benchmark `retrieval`."""
    import faiss

    options = context.options(RetrievalOptions)
    sizes = [300, 3_000] if options.quick else _sizes(options.sizes)
    if options.kind not in (None, *get_args(IndexKind)):
        raise LoadError(f"no index kind {options.kind}; there is {', '.join(get_args(IndexKind))}")
    items, users = _made_up() if options.quick else _embedded(context.settings, options.dataset)
    context.facts["base"] = {"items": len(items), "users": len(users), "dimension": items.shape[1]}
    context.facts["sizes"] = {}
    timed, recalls = {}, {}
    threads = faiss.omp_get_max_threads()
    try:
        for size in sizes:
            with _catalog(items, size, options) as (vectors, folder):
                queries = _queries(items, users, options)
                faiss.omp_set_num_threads(threads)
                index = _built(context, options, vectors, folder)
                recalls[size] = _recall(context, index, vectors, queries)
                faiss.omp_set_num_threads(1)
                timed[size] = _timed(context, index, queries, size)
                context.facts["sizes"][str(size)] |= {"masked_ms": _masked(index, queries[:50])}
    finally:
        faiss.omp_set_num_threads(threads)
    _targets(context, timed, recalls)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise LoadError(f"sizes must be whole numbers separated by commas, not {text!r}") from error
    if sizes[0] < AT or sizes[-1] > 4 * MILLION:
        raise LoadError(f"sizes must lie between {AT} and {4 * MILLION}")
    return sizes


def _embedded(settings: Mapping[str, Any], name: str) -> tuple[Vectors, Vectors]:
    """Return the embeddings of a data set's items, and the content vectors of its users."""
    from cluster.config import Settings
    from cluster.prepare import embedder_here, import_dataset
    from cluster.workspace import Workspace
    from models.bundle import EMBEDDINGS_FILE
    from models.catalog import ItemCatalog
    from models.vectors import open_vectors
    from pipelines.build import Builder

    of = Settings.model_validate(dict(settings))
    workspace, artifacts = Workspace(of), Workspace(of).artifacts()
    if not workspace.dataset_folder(name).is_dir():
        import_dataset(of, name, paths={})
    dataset = workspace.dataset(name)
    release = Builder(
        artifacts,
        settings=of.pipelines.model_copy(update={"train_ranker": False}),
        retrieval=of.models.retrieval,
        encoder=workspace.encoder,
        encoder_uri=of.models.encoder.uri,
        embedder=embedder_here(of),
    ).run(dataset)
    folders = {kind: artifacts.get(ref).path for kind, ref in release.release.artifacts.items()}
    items: Vectors = np.asarray(open_vectors(folders["embeddings"] / EMBEDDINGS_FILE))
    rows = ItemCatalog(folders["catalog"]).rows(list(dataset.events.item_ids))
    return items, _content(items, rows, dataset.events.user_ids)


def _content(items: Vectors, rows: npt.NDArray[np.int32], user_ids: npt.NDArray[np.object_]) -> Vectors:
    """Return one vector per user: the decayed mean of the last items, of unit length."""
    known = rows >= 0
    found = []
    for user in sorted(set(user_ids[known])):
        last = rows[known & (user_ids == user)][-_LAST:]
        found.append(_DECAY ** np.arange(len(last))[::-1] @ items[last])
    return _unit(np.asarray(found, np.float32))


def _made_up() -> tuple[Vectors, Vectors]:
    rng = np.random.default_rng(0)
    items = _unit(rng.standard_normal((150, 32), np.float32))
    return items, _unit(items[rng.integers(0, 150, (40, 3))].sum(axis=1))


def _unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _noisy(items: Vectors, rows: npt.NDArray[np.int64], noise: float, rng: np.random.Generator) -> Vectors:
    spread = np.float32(noise / np.sqrt(items.shape[1]))
    return _unit(items[rows] + spread * rng.standard_normal((len(rows), items.shape[1]), np.float32))


@contextmanager
def _catalog(items: Vectors, size: int, options: RetrievalOptions) -> Iterator[tuple[Vectors, Path]]:
    """Yield `size` vectors, mapped from a file as a replica maps them, and a folder that goes away afterwards."""
    rng = np.random.default_rng([options.seed, size])
    with tempfile.TemporaryDirectory(prefix="raycommend-bench-") as place:
        shape = (size, items.shape[1])
        vectors = np.lib.format.open_memmap(Path(place) / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
        vectors[: len(items)] = items[:size]
        for start in range(min(size, len(items)), size, _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, size))
            vectors[start : start + len(rows)] = _noisy(items, rows % len(items), options.noise, rng)
        vectors.flush()
        yield vectors, Path(place)


def _queries(items: Vectors, users: Vectors, options: RetrievalOptions) -> Vectors:
    rng = np.random.default_rng([options.seed, 1])
    half = options.queries // 2
    asked = np.concatenate(
        [
            users[rng.integers(0, len(users), options.queries - half)],
            _noisy(items, rng.integers(0, len(items), half), options.noise, rng),
        ]
    )
    return np.ascontiguousarray(asked[rng.permutation(len(asked))])


def _built(context: BenchContext, options: RetrievalOptions, vectors: Vectors, folder: Path) -> FaissIndex:
    """Build, write and load as the product does; notes what it took."""
    context.tell(f"{len(vectors)} items: building")
    started = time.perf_counter()
    built: BuiltIndex = build_faiss(vectors, kind=options.kind, recall=options.recall)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    write_faiss(built.index, folder)
    per_item = (folder / "index.faiss").stat().st_size / len(vectors)
    file = context.save_array(f"index-bytes-{len(vectors)}", [per_item])
    context.target(f"index_bytes_per_item_{len(vectors)}", "array_mean", file)
    context.facts["sizes"][str(len(vectors))] = {
        **built.facts,
        "build_s": round(seconds, 1),
        "embedding_bytes_per_item": vectors.itemsize * vectors.shape[1],
    }
    context.tell(f"{built.facts['factory']} in {seconds:.1f} s, {per_item:.0f} bytes an item: {dict(built.facts)}")
    return load_faiss(folder, vectors)


def _recall(context: BenchContext, index: FaissIndex, vectors: Vectors, queries: Vectors) -> str:
    import faiss

    truth = faiss.knn(queries, vectors, AT, metric=faiss.METRIC_INNER_PRODUCT)[1]
    found = [index.search(query, AT)[0] for query in queries]
    shares = [len(np.intersect1d(a, b)) / AT for a, b in zip(truth, found, strict=True)]
    context.tell(f"recall@{AT} {np.mean(shares):.4f}")
    return context.save_array(f"recall-{len(vectors)}", shares)


def _timed(context: BenchContext, index: FaissIndex, queries: Vectors, size: int) -> str:
    bare = index.index

    def searches(call: Any) -> list[float]:
        return [timed_ms(lambda q=query: call(q), 1)[0] for query in queries]  # type: ignore[misc]

    return context.interleave(
        f"search-{size}",
        {
            "ours": lambda: searches(lambda q: index.search(q, AT)),
            "faiss": lambda: searches(lambda q: bare.search(q.reshape(1, -1), AT)),
        },
    )


def _masked(index: FaissIndex, queries: Vectors) -> dict[str, float]:
    """Return the median ms under filters that allow a share of all rows at random: what no bare index answers."""
    total = index.index.ntotal
    found = {}
    for share in (0.999, 0.3, 0.01):
        allowed = np.random.default_rng(3).random(total) < share
        times = [timed_ms(lambda q=q, a=allowed: index.search(q, AT, allowed=a), 1)[0] for q in queries]  # type: ignore[misc]
        found[f"{share:g}"] = round(float(np.median(times)), 3)
    return found


def _targets(context: BenchContext, timed: Mapping[int, str], recalls: Mapping[int, str]) -> None:
    against: dict[str, Any] = {"over": "ours", "under": "faiss", "statistic": "p99"}
    context.target("p99_vs_faiss", "highest_paired_ratio", *timed.values(), aim=Aim(at_most=1.2), **against)
    if MILLION in timed:
        aim = Aim(at_most=3.0)
        context.target("p99_1m_ms", "arm", timed[MILLION], aim=aim, name="ours", statistic="p99")
    context.target("recall", "lowest_mean", *recalls.values(), aim=Aim(at_least=0.97))
    for size, file in timed.items():
        context.target(f"p99_vs_faiss_{size}", "paired_ratio", file, **against)
        context.target(f"p50_vs_faiss_{size}", "paired_ratio", file, over="ours", under="faiss")
        context.target(f"p99_ms_{size}", "arm", file, name="ours", statistic="p99")
        context.target(f"p50_ms_{size}", "arm", file, name="ours")
        context.target(f"recall_{size}", "array_mean", recalls[size])
