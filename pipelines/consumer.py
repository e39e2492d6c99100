"""The event consumer as a process: `python -m pipelines.consumer --log FOLDER [--tenant main] [--once] [--cluster]`.

The store's URL comes from RAYCOMMEND_STORE_URL, because it holds a password. Runs until SIGTERM or SIGINT; with
`--once` until nothing is left. Prints one JSON line at the end. Any number may run side by side and be killed any time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from models.consumer.consumer import Consumer
from models.consumer.settings import ConsumerSettings
from models.store.port import StoreLimits
from models.store.redis_streams import RedisEventStreams
from models.store.streams import EventStreams

STORE_URL = "RAYCOMMEND_STORE_URL"


def open_streams(url: str, *, cluster: bool = False, limits: StoreLimits | None = None) -> EventStreams:
    """Open a store for work that is no request: a batch may take its time. `limits` matter to who appends."""
    return RedisEventStreams(
        url, cluster=cluster, limits=limits, write_timeout_s=10.0, connect_timeout_s=5.0, connections=8
    )


async def consume(
    url: str, *, log_folder: Path, tenant: str, once: bool, cluster: bool, settings: ConsumerSettings
) -> dict[str, Any]:
    """Consume until a signal, or until nothing is left; return counts and lag. Raises StoreError."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    streams = open_streams(url, cluster=cluster)
    try:
        consumer = Consumer(streams, tenant=tenant, log_folder=log_folder, settings=settings)
        if once:
            await consumer.drain()
        else:
            await consumer.run(stop)
        return await consumer.state()
    finally:
        await streams.close()


def main() -> None:
    """Read the command line, consume, print."""
    parser = argparse.ArgumentParser(description="Consume the event streams of a store.")
    parser.add_argument("--log", type=Path, required=True, help="folder of the event log")
    parser.add_argument("--tenant", default="main")
    parser.add_argument("--once", action="store_true", help="stop when nothing is left")
    parser.add_argument("--cluster", action="store_true", help="the store runs in cluster mode")
    parser.add_argument("--settings", default="{}", help="settings of the consumer as JSON")
    args = parser.parse_args()
    url = os.environ.get(STORE_URL)
    if not url:
        parser.error(f"set {STORE_URL} to the URL of the store (redis:// or rediss://)")
    settings = ConsumerSettings.model_validate_json(args.settings)
    options = {"log_folder": args.log, "tenant": args.tenant, "once": args.once, "cluster": args.cluster}
    print(json.dumps(asyncio.run(consume(url, **options, settings=settings))))


if __name__ == "__main__":
    main()
