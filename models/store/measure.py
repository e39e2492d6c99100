"""Measures a store: durable events per second, and what `fetch` costs beside a plain pipeline of the same reads.

    python -m models.store.measure redis://:password@host:6379/0 [--cluster] [--seconds 5]

Writes under a tenant of its own, whose keys stay. Prints one JSON line. Called by operators; knows nothing of serving.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from models.events import Event, EventType
from models.features import RECENT_EVENTS
from models.ids import bucket_of
from models.store.redis_store import RedisStore

_USERS = 1000


def _events(run: str, start: int, count: int, users: int) -> list[Event]:
    return [
        Event(f"{run}-{i}", f"u{i % users}", EventType.click, 1_700_000_000_000 + i, f"item-{i % 5000}")
        for i in range(start, start + count)
    ]


async def _rate(store: RedisStore, tenant: str, *, size: int, callers: int, seconds: float) -> float:
    """Return acknowledged events per second of `callers` that append `size` events at a time."""
    run, next_id, end = uuid.uuid4().hex[:8], 0, time.perf_counter() + seconds

    async def caller() -> int:
        nonlocal next_id
        done = 0
        while time.perf_counter() < end:
            next_id += size
            now_ms = time.time_ns() // 1_000_000
            done += len(await store.append(tenant, _events(run, next_id, size, _USERS), now_ms=now_ms))
        return done

    start = time.perf_counter()
    done = sum(await asyncio.gather(*(caller() for _ in range(callers))))
    return done / (time.perf_counter() - start)


async def _interleaved(calls: dict[str, Callable[[], Awaitable[Any]]], seconds: float) -> dict[str, dict[str, float]]:
    """Return p50 and p99 in ms of each call; the calls take turns, so that all see the same machine."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            start = time.perf_counter()
            await call()
            samples[name].append((time.perf_counter() - start) * 1000)
    return {
        name: {"p50_ms": round(float(np.median(s)), 3), "p99_ms": round(float(np.percentile(s, 99)), 3), "n": len(s)}
        for name, s in samples.items()
    }


async def measure(url: str, *, cluster: bool = False, seconds: float = 5.0) -> dict[str, Any]:
    """Return every figure of one run; each part takes `seconds`."""
    store = RedisStore(url, cluster=cluster, write_timeout_s=10.0)
    tenant = f"measure-{uuid.uuid4().hex[:8]}"
    try:
        result: dict[str, Any] = {"durability": await store.durability()}
        rates = {(1, 1), (1, 16), (20, 4), (500, 1)}
        for size, callers in sorted(rates):
            name = f"durable_events_per_s_{callers}x{size}"
            result[name] = round(await _rate(store, tenant, size=size, callers=callers, seconds=seconds))
        # A user with a full ring and 1,000 seen items; a session with ten events.
        for start in range(0, 1000, 500):
            await store.append(tenant, _events("full", start, 500, 1), now_ms=1_700_000_000_000, to_stream=False)
        result["ring"] = RECENT_EVENTS
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "fetch": lambda: store.fetch(tenant, "u0", None, timeout_s=5),
            "fetch_user_and_session": lambda: store.fetch(tenant, "u0", "u7", timeout_s=5),
        }
        if cluster:
            return result | await _interleaved(calls, seconds)
        from redis.asyncio import Redis

        async with Redis.from_url(url) as plain:
            result |= await _interleaved({**calls, "plain_pipeline": lambda: _plain(plain, tenant, "u0")}, seconds)
        return result
    finally:
        await store.close()


async def _plain(client: Any, tenant: str, owner: str) -> Any:
    tag = f"{{{tenant}:{bucket_of(owner)}}}"
    reads = client.pipeline(transaction=False).lrange(f"{tag}r:{owner}", 0, -1)
    return await reads.get(f"{tag}s:{owner}").get(f"{tag}i:{owner}").execute()


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure an online store.")
    parser.add_argument("url", help="redis:// or rediss:// URL")
    parser.add_argument("--cluster", action="store_true", help="the server runs in cluster mode")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each part")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args.url, cluster=args.cluster, seconds=args.seconds))))


if __name__ == "__main__":
    main()
