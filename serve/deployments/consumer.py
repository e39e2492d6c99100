"""The Consumer deployment: counts the events of all tenants live and writes the event log. One replica, no requests.

Killed at any time it loses nothing and counts nothing twice; a replica that comes after it goes on where it was.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from models.consumer.consumer import Consumer
from models.store.port import StoreError
from models.store.redis_streams import RedisEventStreams
from serve.deployments.replica import ReplicaConfig, api_keys, check_packages, store_url

_REPORT_S = 5.0


class ConsumerDeployment:
    """Hosts one consumer per tenant."""

    async def __init__(self, config: ReplicaConfig, folder: str) -> None:  # type: ignore[misc]  # Serve awaits it
        """`folder` takes the event log, one folder per tenant."""
        check_packages(config)
        streams = RedisEventStreams(
            store_url(), cluster=config.store_cluster, write_timeout_s=10.0, connect_timeout_s=5.0, connections=8
        )
        stop = asyncio.Event()
        self._consumers = {
            tenant: Consumer(
                streams, tenant=tenant, log_folder=Path(folder) / tenant, settings=config.settings.consumer.loop
            )
            for tenant in api_keys().tenants
        }
        self._lag = {
            name: ray_serve.metrics.Gauge(f"raycommend_consumer_lag_{name}", text, tag_keys=("tenant", "group"))
            for name, text in (("entries", "Events behind."), ("oldest_ms", "Age of the oldest event behind, in ms."))
        }
        self._loops = [asyncio.create_task(c.run(stop)) for c in self._consumers.values()]
        self._loops.append(asyncio.create_task(self._report()))

    def check_health(self) -> None:
        """Raise what ended a loop: Serve then starts the replica anew, and says why."""
        for loop in self._loops:
            if loop.done():
                raise RuntimeError("the event consumer ended") from loop.exception()

    async def state(self) -> dict[str, Any]:
        """Return counts, lag and snapshot version by tenant. Raises StoreError."""
        return {tenant: await consumer.state() for tenant, consumer in self._consumers.items()}

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            try:
                state = await self.state()
            except StoreError:
                continue  # the loops say it
            for tenant, of in state.items():
                for group, lag in of["lag"].items():
                    for name, value in lag.items():
                        self._lag[name].set(value, tags={"tenant": tenant, "group": group})
