"""Benchmark `features`: the FeatureFetcher port in process beside a plain redis-py pipeline of the same reads.

An embedded Valkey of its own is filled with profiles whose rings are full and whose seen sets hold a few hundred to
20,000 items. Both arms read the same users one at a time in turn; only ours also decodes, and what it returns is
compared with what was written. Where a cluster runs, the stage as its ingress sees it (handle call, coalescing and
the same read) is printed beside it. Called by the harness.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.stack import api_url, running
from cluster.valkey import start_valkey
from loadtests import workload
from loadtests.bench.freshness import api_client
from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError
from models.events import Event, EventType
from models.features import RECENT_EVENTS, UserFeatures, features_from_events
from models.ids import bucket_of
from models.store.redis_store import RedisStore, tag_of
from serve.context import StageCall
from serve.stages import StoreFeatureFetcher

TENANT = "bench"
_TYPES = (EventType.view, EventType.click, EventType.like, EventType.purchase)
_NOW_MS = 1_750_000_000_000
_SEEN = ((0.5, 300), (0.7, 600), (0.85, 2_000), (0.95, 6_000), (1.0, 20_000))
"""(share of users up to here, size of their seen set)."""
_PATIENCE_MS = 10_000.0


class FeaturesOptions(BaseModel):
    """Options of the `features` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    users: int = Field(60, ge=1, le=1000)
    """Profiles; one in twenty has seen 20,000 items."""
    fetches: int = Field(1000, ge=50, le=100_000)
    """Per arm and round."""
    hop_requests: int = Field(300, ge=0, le=10_000)
    """List calls to a running cluster, one at a time, for the stage as its ingress sees it."""
    quick: bool = False
    """Few and small profiles, for tests. Its figures mean nothing."""


def bench(context: BenchContext) -> None:
    """Run the benchmark `features`."""
    options = context.options(FeaturesOptions)
    sizes = [300, 600] if options.quick else [_seen_size((i + 0.5) / options.users) for i in range(options.users)]
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="raycommend-bench-") as folder, asyncio.Runner() as runner:
        server = start_valkey(Path(folder), port=_free_port(), role="store", password=password)
        try:
            _compare(context, options, runner, server.url, [_history(i, size) for i, size in enumerate(sizes)])
        finally:
            server.stop()
    _hop(context, options)
    context.target("fetch_p99_ratio", "paired_ratio", *_PAIR, aim=Aim(at_most=1.2), statistic="p99", **_OVER)
    context.target("fetch_p50_ratio", "paired_ratio", *_PAIR, **_OVER)
    for name in ("port", "plain"):
        context.target(f"{name}_p99_ms", "arm", *_PAIR, name=name, statistic="p99")
        context.target(f"{name}_p50_ms", "arm", *_PAIR, name=name)
    context.target("decoded_equal_share", "array_mean", "equal.npy", aim=Aim(at_least=1.0))


_PAIR = ("fetch.parquet",)
_OVER = {"over": "port", "under": "plain"}


def _seen_size(at: float) -> int:
    return next(size for share, size in _SEEN if at <= share)


def _history(number: int, size: int) -> list[Event]:
    """Return one user's events, oldest first, each on another item."""
    rng = np.random.default_rng([number, size])
    items = rng.choice(10_000_000, size, replace=False)
    return [
        Event(f"e{i}", f"user-{number}", _TYPES[item % 4], _NOW_MS + 1000 * i, f"sku-{item}", float(item % 5))
        for i, item in enumerate(items.tolist())
    ]


def _compare(
    context: BenchContext,
    options: FeaturesOptions,
    runner: asyncio.Runner,
    url: str,
    histories: Sequence[Sequence[Event]],
) -> None:
    from redis.asyncio import Redis

    store = RedisStore(url, write_timeout_s=30.0, connect_timeout_s=5.0)
    fetcher = StoreFeatureFetcher(store)
    plain = Redis.from_url(url)
    call = StageCall(TENANT, "", _PATIENCE_MS)
    try:
        context.tell(f"writing {sum(map(len, histories))} events of {len(histories)} users")
        runner.run(_write(store, histories))
        users = [events[0].owner for events in histories]
        fetched = [runner.run(fetcher.fetch(call, user, None)) for user in users]
        equal = [_same(mine, _expected(events)) for mine, events in zip(fetched, histories, strict=True)]
        context.save_array("equal", np.array(equal, np.float64))
        for user, events in zip(users, histories, strict=True):
            ring, seen = runner.run(_plain(plain, user))
            if len(ring) != min(RECENT_EVENTS, len(events)) or len(seen) != 8 + 8 * len(events):
                raise LoadError("the plain pipeline does not read what was written")
        asked = [users[i] for i in np.random.default_rng(0).integers(0, len(users), options.fetches)]
        arms = {
            "port": lambda: runner.run(_timed(lambda user: fetcher.fetch(call, user, None), asked)),
            "plain": lambda: runner.run(_timed(lambda user: _plain(plain, user), asked)),
        }
        context.interleave("fetch", arms)
        context.facts["ring_events"] = RECENT_EVENTS
        context.facts["seen_items"] = [len(events) for events in histories]
        context.facts["hiredis"] = find_spec("hiredis") is not None
    finally:
        runner.run(store.close())
        runner.run(plain.aclose())


async def _write(store: RedisStore, histories: Sequence[Sequence[Event]]) -> None:
    for events in histories:
        for start in range(0, len(events), 500):
            await store.append(TENANT, events[start : start + 500], now_ms=_NOW_MS, to_stream=False)


def _expected(events: Sequence[Event]) -> UserFeatures:
    return features_from_events(
        [event.item_id or "" for event in events],
        np.array([event.type for event in events], np.uint8),
        np.array([event.value for event in events], np.float32),
        np.array([event.timestamp_ms for event in events], np.int64),
    )


def _same(mine: UserFeatures, wanted: UserFeatures) -> bool:
    columns = ("types", "values", "timestamps_ms", "seen")
    return (mine.item_ids, mine.known, mine.stale) == (wanted.item_ids, wanted.known, wanted.stale) and all(
        np.array_equal(getattr(mine, name), getattr(wanted, name)) for name in columns
    )


async def _plain(client: Any, user: str) -> Any:
    tag = tag_of(TENANT, bucket_of(user))
    return await client.pipeline(transaction=False).lrange(f"{tag}r:{user}", 0, -1).get(f"{tag}s:{user}").execute()


async def _timed(read: Callable[[str], Awaitable[Any]], users: Sequence[str]) -> list[float]:
    times = []
    for user in users:
        began = time.perf_counter_ns()
        await read(user)
        times.append((time.perf_counter_ns() - began) / 1e6)
    return times


def _hop(context: BenchContext, options: FeaturesOptions) -> None:
    """State what the stage costs an ingress replica of a running cluster."""
    settings = Settings.model_validate(dict(context.settings))
    what = "stage `features` of POST /v1/recommend on a running cluster: handle call, coalescing and fetch"
    if not options.hop_requests or not running(settings):
        context.facts["serve_hop"] = "not measured: no cluster runs" if options.hop_requests else "not asked for"
        return
    users = workload.ids_from("943")
    with api_client(api_url(settings)) as http:
        answers = [
            http.post("/v1/recommend", json={"user_id": users[i % len(users)]}) for i in range(options.hop_requests)
        ]
    times = [float(answer.json()["timings_ms"]["features"]) for answer in answers if answer.status_code == 200]
    context.facts["serve_hop"] = {"what": what, "answers": len(times), "asked": options.hop_requests}
    file = context.save_array("hop", times)
    context.target("serve_hop_p99_ms", "array_quantile", file, q=0.99)
    context.target("serve_hop_p50_ms", "array_quantile", file, q=0.5)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
