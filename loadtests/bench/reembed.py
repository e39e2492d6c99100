"""Benchmark `reembed`: the embedding job beside bare `encode` on the same cores, 1 % of changes, and its memory.

Index build and start-up are left out: a job is timed from the moment all its workers are ready. Every arm of a round
embeds the same texts; memory is the proportional set size of the job's processes, sampled while it runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.ray_job import job_ray
from cluster.reembed import encoder_of
from cluster.workspace import Workspace
from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from models.artifacts import Artifact, ArtifactStore
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.encoder import load_encoder
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.runners import RayRunner, WorkerPlace, items_per_s

_WORDS = ("river", "night", "song", "letter", "winter", "captain", "garden", "silver", "paper", "window", "island")


class Options(BaseModel):
    """Options of the benchmark."""

    model_config = ConfigDict(extra="forbid")

    items: int = Field(10_240, ge=4096)
    """Items of a round of `throughput_vs_encode`, and the smaller catalog of `memory_ratio`."""
    large: int = Field(200_000, ge=20_000)
    """The larger catalog of `memory_ratio`; the one that changes for `incremental_cost`."""
    words: int = Field(8, ge=1)
    """Words of a text on average."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one run of the benchmark keeps its artifacts."""

    settings: Settings
    workspace: Workspace
    artifacts: ArtifactStore
    url: str
    cache: Path

    def run(self, catalog: Artifact, previous: str | None = None) -> tuple[str, RayRunner, float]:
        """Embed; return the artifact, its runner, and the seconds that were not spent on starting workers."""
        place = partial(WorkerPlace, self.url, self.cache, "main")
        embedding = self.settings.pipelines.embedding
        runner = RayRunner(place, encoder_of(self.settings, self.workspace), embedding)
        embedder = Embedder(self.artifacts, self.workspace.encoder_spec(), runner, previous, previous is None)
        began = time.time()
        first: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            facts = embedder.embed(catalog, Path(folder), lambda *_: first.append(time.time()))
            ended = time.time()
            ref = self.artifacts.put("embeddings", Path(folder), facts)
        embedder.forget(catalog)
        # From the hand-over to the pool until its first block began, workers were starting.
        starting = min(t.began_s for t in runner.times) - first[0]
        return ref, runner, ended - began - starting


def bench(context: BenchContext) -> None:
    """Run the benchmark `reembed`."""
    options = context.options(Options)
    settings = Settings.model_validate(dict(context.settings))
    workspace = Workspace(settings)
    with tempfile.TemporaryDirectory() as folder, job_ray(settings, say=context.tell):
        url, cache = str(Path(folder) / "artifacts"), Path(folder) / "cache"
        place = _Place(settings, workspace, ArtifactStore(url, cache=cache), url, cache)
        small = _catalog(place, _texts(options.items, options.words, seed=0))
        _throughput(context, place, small)
        texts = _texts(options.large, options.words, seed=1)
        with _Memory() as little:
            place.run(small)
        with _Memory() as much:
            ref, _, full_s = place.run(_catalog(place, texts))
        context.tell(f"peak {little.peak / 1e6:.0f} MB and {much.peak / 1e6:.0f} MB; {full_s:.1f} s in full")
        rng = np.random.default_rng(2)
        for row in rng.choice(len(texts), len(texts) // 100, replace=False):
            texts[row] = replace(texts[row], text=texts[row].text + " anew")
        _, _, part_s = place.run(_catalog(place, texts), ref)
        context.tell(f"{part_s:.2f} s for 1 % of {len(texts)} items changed in place")
        context.facts |= {"full_s": full_s, "incremental_s": part_s, "small_peak_bytes": little.peak}
        context.facts |= {"large_peak_bytes": much.peak}
        cost = context.save_array("incremental", [part_s / full_s])
        memory = context.save_array("memory", [much.peak / little.peak])
        context.target("incremental_cost", "array_mean", cost, aim=Aim(at_most=0.05))
        context.target("memory_ratio", "array_mean", memory, aim=Aim(at_most=1.3))


def _throughput(context: BenchContext, place: _Place, catalog: Artifact) -> None:
    """Bare `encode` with all threads in this process against the job, in turn."""
    of = place.settings.models.encoder
    embedding = place.settings.pipelines.embedding
    texts = ItemCatalog(catalog.path)
    documents = texts.documents(np.arange(len(texts), dtype=np.int32))
    folder = place.workspace.encoder_folder()
    threads = embedding.workers * embedding.threads
    encoder = load_encoder(folder, max_tokens=of.max_tokens, batch_size=of.batch_size, threads=threads)

    def bare() -> float:
        began = time.perf_counter()
        encoder.encode(documents)
        return len(documents) / (time.perf_counter() - began)

    def job() -> float:
        return items_per_s(place.run(catalog)[1].times) or 0.0

    arms: dict[str, Callable[[], float]] = {"encode": bare, "job": job}
    file = context.interleave("throughput", arms, warmup=0, max_s=900)
    context.target("throughput_vs_encode", "paired_ratio", file, over="job", under="encode", aim=Aim(at_least=0.95))
    context.target("job_items_per_s", "arm", file, name="job")
    context.target("encode_items_per_s", "arm", file, name="encode")


def _texts(count: int, words: int, *, seed: int) -> list[Item]:
    rng = np.random.default_rng(seed)
    lengths = rng.poisson(words, count) + 1
    return [
        Item(f"i{seed}-{n}", f"Film {n}", " ".join(_WORDS[w] for w in rng.integers(0, len(_WORDS), length)))
        for n, length in enumerate(lengths)
    ]


def _catalog(place: _Place, items: Sequence[Item]) -> Artifact:
    with tempfile.TemporaryDirectory() as folder:
        write_catalog(items, Path(folder) / CATALOG_FILE)
        return place.artifacts.get(place.artifacts.put("catalog", Path(folder), {}))


class _Memory:
    """Peak memory of the processes of a job, bytes: proportional set size of Ray and its workers, and our own growth.

    What this process holds already (the texts of the benchmark itself, and its own encoder) is no part of the job.
    """

    def __enter__(self) -> _Memory:
        self.peak = 0
        self._stop = Event()
        self._own = _own_bytes()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        me = psutil.Process()
        while not self._stop.wait(0.5):
            total = max(0, _own_bytes() - self._own)
            for child in me.children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak = max(self.peak, total)


def _own_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_full_info().pss)
