"""Who computes blocks: this process, or a pool of encoder actors fed by Ray Data.

A worker reads the texts of its block from the catalog on its own node, so that neither texts nor vectors travel through
the object store. An actor that dies costs the block it had in hand; Ray starts another and repeats that block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from models.artifacts import Artifact, ArtifactStore
from models.catalog import ItemCatalog
from models.encoder import Encoder
from models.media.items import encode_rows, take_unread
from models.vectors import Dtype
from pipelines.embedding.blocks import Block, BlockFolder
from pipelines.embedding.settings import EmbeddingSettings

_MOST_TASKS = 4096
_WORK = ("key", "rows", "contents", "dtype")
"""What a worker is told of a block."""


class InlineRunner:
    """Computes blocks one after another; `encoder` is called once, and only when there is something to do."""

    def __init__(self, encoder: Callable[[], Encoder]) -> None:
        self._load = encoder
        self.unread: list[tuple[str, str]] = []
        """References of pictures and sounds that could not be read, with reasons."""

    def run(self, catalog: Artifact, blocks: Sequence[Block], folder: BlockFolder, done: Callable[[int], None]) -> None:
        """See `BlockRunner.run`."""
        encoder, items = self._load(), ItemCatalog(catalog.path)
        for block in blocks:
            folder.write(block, encode_rows(encoder, items, block.rows))
            self.unread += take_unread(encoder)
            done(len(block.rows))


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker needs to find the catalog and put blocks: where artifacts are and its node's cache of them."""

    url: str
    cache: Path
    tenant: str
    catalog: str


@dataclass(frozen=True, slots=True)
class BlockTime:
    """When a worker computed a block, in seconds since 1970 (one clock per node)."""

    worker: str
    ready_s: float
    began_s: float
    ended_s: float
    items: int


class EncodeBlocks:
    """An encoder actor of the pool."""

    def __init__(self, place: WorkerPlace, encoder: Callable[[], Encoder]) -> None:
        artifacts = ArtifactStore(place.url, cache=place.cache, tenant=place.tenant)
        self._items = ItemCatalog(artifacts.get(place.catalog).path)
        self._folder = BlockFolder(artifacts)
        self._encoder = encoder()
        self._encoder.encode(["warm up"])
        self._ready_s = time.time()
        self._name = f"{time.time_ns():x}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Compute the blocks of a batch and return when each was done."""
        times: dict[str, list[Any]] = {name: [] for name in (*BlockTime.__slots__, "unread")}
        for key, rows, contents, dtype in zip(*(batch[name] for name in _WORK), strict=True):
            began = time.time()
            held = np.frombuffer(rows, "<i4"), np.frombuffer(contents, "<u8").reshape(-1, 2)
            block = Block(str(key), *held, cast(Dtype, str(dtype)))
            self._folder.write(block, encode_rows(self._encoder, self._items, block.rows))
            row = BlockTime(self._name, self._ready_s, began, time.time(), len(block.rows))
            for name in BlockTime.__slots__:
                times[name].append(getattr(row, name))
            times["unread"].append(json.dumps(take_unread(self._encoder)))
        return {name: np.asarray(values) for name, values in times.items()}


class RayRunner:
    """Computes blocks with Ray Data on the Ray this process is connected to."""

    def __init__(
        self, place: Callable[[str], WorkerPlace], encoder: Callable[[], Encoder], settings: EmbeddingSettings
    ) -> None:
        """`place(catalog reference)` and `encoder` go to the workers, so both must pickle."""
        self._place = place
        self._encoder = encoder
        self._settings = settings
        self.times: list[BlockTime] = []
        """One per block that was computed, in the order of completion."""
        self.unread: list[tuple[str, str]] = []
        """References of pictures and sounds that could not be read, with reasons."""

    def run(self, catalog: Artifact, blocks: Sequence[Block], folder: BlockFolder, done: Callable[[int], None]) -> None:
        """See `BlockRunner.run`."""
        import ray

        quiet_ray_data()
        workers = min(self._settings.workers, len(blocks))
        parts = ((b.key, b.rows.astype("<i4").tobytes(), b.contents.astype("<u8").tobytes(), b.dtype) for b in blocks)
        work = [dict(zip(_WORK, part, strict=True)) for part in parts]
        # One task per block, so that a lost actor repeats one block and not its neighbours.
        data = ray.data.from_items(work, override_num_blocks=min(len(work), _MOST_TASKS)).map_batches(
            EncodeBlocks,
            fn_constructor_args=(self._place(catalog.ref), self._encoder),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=self._settings.cpus_per_worker,
            num_gpus=_gpus(self._settings, workers, ray.available_resources().get("GPU", 0.0)),
        )
        for row in data.iter_rows():
            self.unread += [(str(what), str(why)) for what, why in json.loads(row.pop("unread"))]
            self.times.append(BlockTime(**row))
            done(int(row["items"]))


def _gpus(settings: EmbeddingSettings, workers: int, free: float) -> float:
    """Return the share of a GPU that each actor gets: what the settings say, else its part of what is free.

    Below a tenth it is not worth a copy of the model, and the CPU does it.
    """
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker
    share = min(1.0, free / workers)
    # Whole hundredths, rounded down: shares that add up to more than there is would wait for ever.
    return np.floor(share * 100).item() / 100 if share >= 0.1 else 0.0


def items_per_s(times: Sequence[BlockTime]) -> float | None:
    """Return how fast blocks were computed once every worker was ready; None without any."""
    warm = max((t.ready_s for t in times), default=0.0)
    counted = [t for t in times if t.ended_s > warm]
    if not counted:
        return None
    began = max(warm, min(t.began_s for t in counted))
    # A block that was begun before counts with the share of it that came after.
    items = sum(t.items * (t.ended_s - max(t.began_s, began)) / max(t.ended_s - t.began_s, 1e-9) for t in counted)
    return float(items / (max(t.ended_s for t in counted) - began))


def quiet_ray_data() -> None:
    """Keep Ray Data's own bars and notices off the terminal: ours are drawn by whoever called."""
    import logging

    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
