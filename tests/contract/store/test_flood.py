"""Ten thousand events of one user in a second, through the event service: bounded, and no one else's matter."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from models.store.profiles import RedisProfiles
from serve.fakes import SilentMetrics
from serve.ingest import EventService
from serve.schemas import MAX_EVENTS, EventIn, EventResult
from serve.settings import ServeSettings
from serve.signing import Signer
from serve.stages import StoreEventSink

EVENTS = 10_000


def click(number: int, user: str) -> EventIn:
    return EventIn(event_id=f"e{number}", user_id=user, item_id=f"i{number}", type="click")


async def test_a_flood_of_one_user_is_bounded_and_another_user_hardly_waits(start_server) -> None:
    settings = ServeSettings()
    limits = settings.store_limits()
    store = RedisProfiles(start_server().url, limits=limits, write_timeout_s=10.0)
    service = EventService(StoreEventSink(store), Signer(b"0123456789abcdef"), SilentMetrics(), settings)
    calls = [[click(n, "flood") for n in range(at, at + MAX_EVENTS)] for at in range(0, EVENTS, MAX_EVENTS)]
    waited, calm = [], []

    async def another_user() -> None:
        for n in range(20):
            started = time.monotonic()
            calm.extend(await service.accept([click(n, "calm")], tenant="main"))
            waited.append(time.monotonic() - started)

    try:
        await store.ping()
        started = time.time()
        *flooded, _ = await asyncio.gather(*(service.accept(c, tenant="main") for c in calls), another_user())
        seconds = int(time.time()) - int(started) + 1
        results: list[EventResult] = [r for reply in flooded for r in reply]
        told = Counter((r.status, r.reason) for r in results)
        assert set(told) <= {("accepted", None), ("ignored", "too many events of one user; send it again later")}
        assert 0 < told["accepted", None] <= limits.events_per_owner_s * seconds
        assert len((await store.fetch("main", "flood", None, timeout_s=5)).seen) == told["accepted", None]
        assert {r.status for r in calm} == {"accepted"}
        assert max(waited) < 2.0, f"another user waited {max(waited):.2f} s"
        # What was turned away is not remembered: later it lands.
        late = next(i for i, r in enumerate(results) if r.status == "ignored")
        await asyncio.sleep(1.05)
        assert (await service.accept([click(late, "flood")], tenant="main"))[0].status == "accepted"
    finally:
        await store.close()
