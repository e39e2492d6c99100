"""The body of the `ingest` command: events of a Kafka topic into the store of this deployment.

A message is one event in the form that `POST /v1/events` takes. Called by the command line.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.workspace import Workspace
from models.events import Event, EventType, session_owner
from models.ids import is_valid_id
from models.store.port import StoreError
from pipelines.consumer import open_streams
from pipelines.ingest import Ingest
from pipelines.kafka import KafkaSource, SourceError
from serve.deployments.replica import STORE_URL
from serve.schemas import EventIn
from serve.settings import ServeSettings

_REPORT_S, _GRACE_S = 5.0, 5.0


def decode_event(message: bytes, settings: ServeSettings) -> Event:
    """Return the event of a message. Raises ValueError saying what is wrong, without quoting the message."""
    try:
        given = EventIn.model_validate_json(message)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {first['msg']}" if path else first["msg"]) from None
    now_ms = time.time_ns() // 1_000_000
    at = now_ms if given.timestamp_ms is None else given.timestamp_ms
    if at > now_ms + settings.future_events_s * 1000:
        raise ValueError("timestamp_ms lies in the future")
    if at < settings.oldest_event_ms:
        raise ValueError("timestamp_ms lies before the oldest accepted event")
    if given.type == "impression":
        raise ValueError("an impression needs the proof that only the events endpoint checks")
    owner = given.user_id if given.user_id is not None else session_owner(given.session_id or "")
    kind, value = EventType[given.type], float(given.value)
    return Event(given.event_id, owner, kind, at, given.item_id, value, given.decision_id)


def ingest_kafka(
    settings: Settings,
    *,
    servers: str,
    topic: str,
    group: str,
    tenant: str,
    until_empty: bool,
    properties: Path | None,
    tell: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Ingest until a signal (or until the topic is empty); `tell` hears of progress and lag. Returns the last of it.

    Raises OperatorError when Kafka or the store cannot be used.
    """
    if not is_valid_id(tenant):
        raise OperatorError("--tenant is not a valid id")
    url = Workspace(settings).secrets().get(STORE_URL)
    if url is None:
        raise OperatorError(f"set {STORE_URL} to the URL of the store (redis:// or rediss://)")

    async def run() -> dict[str, Any]:
        limits = settings.serve.store_limits()
        streams = open_streams(url, cluster=settings.cluster.store.cluster, limits=limits)
        try:
            await streams.ping()  # a wrong URL is said before anything is read
            source = KafkaSource(
                servers,
                topic,
                group=group,
                decode=lambda message: decode_event(message, settings.serve),
                properties=_read_properties(properties),
            )
            try:
                ingest = Ingest(source, streams, tenant=tenant, name=f"kafka:{topic}")
                return await _loop(source, ingest, until_empty, tell)
            finally:
                await source.close()
        finally:
            await streams.close()

    try:
        return asyncio.run(run())
    except SourceError as error:
        raise OperatorError(str(error)) from error
    except StoreError as error:
        raise OperatorError(f"the store cannot be used (is `raycommend up` running?): {error}") from error


async def _loop(
    source: KafkaSource, ingest: Ingest, until_empty: bool, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    started = told = time.monotonic()

    async def report() -> dict[str, Any]:
        counts = asdict(ingest.counts)
        rate = sum(counts.values()) / max(1e-9, time.monotonic() - started)
        return {**counts, "lag": await source.lag(), "events_per_s": round(rate, 1)}

    while not stop.is_set():
        read = await _until(stop, ingest.step())
        if until_empty and not read and await source.assigned() and not await source.lag():
            break
        if time.monotonic() - told >= _REPORT_S:
            told = time.monotonic()
            tell(await report())
    state = await report()
    tell(state)
    return state


async def _until(stop: asyncio.Event, step: Coroutine[Any, Any, int]) -> int:
    """Run a step; a step that waits for a store that is away is given up a while after `stop`."""
    running, stopping = asyncio.ensure_future(step), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await asyncio.wait({running}, timeout=_GRACE_S)
        return await running if running.done() else 0
    finally:
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)


def _read_properties(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise OperatorError(f"--properties {file}: {error}") from error
    if not isinstance(found, dict):
        raise OperatorError(f"--properties {file}: must be a JSON object of librdkafka properties")
    return found
