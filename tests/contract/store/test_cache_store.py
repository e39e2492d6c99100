"""The cache store, in memory and on a real server: values for a while, and never a long wait."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator

import pytest

from models.explain.evidence import Evidence
from models.explain.reason_cache import TieredReasons
from models.store.cache_store import FAILURES_BEFORE_PAUSE, CacheStore, MemoryCache, RedisCache
from models.store.port import StoreError


@pytest.fixture(params=["memory", "valkey"])
async def cache(request: pytest.FixtureRequest, start_server) -> AsyncIterator[CacheStore]:
    made: CacheStore = (
        MemoryCache() if request.param == "memory" else RedisCache(start_server(role="cache").url, timeout_s=2.0)
    )
    yield made
    await made.close()


async def test_values_come_back_in_the_order_of_the_keys(cache: CacheStore) -> None:
    await cache.put("a", b"1", ttl_s=60)
    await cache.put("b", b"\x00\xff", ttl_s=60)
    assert await cache.get_many(["b", "nothing", "a", "b"]) == [b"\x00\xff", None, b"1", b"\x00\xff"]
    assert await cache.get_many([]) == []


async def test_a_value_is_replaced_and_expires(cache: CacheStore) -> None:
    await cache.put("a", b"old", ttl_s=60)
    await cache.put("a", b"new", ttl_s=0.2)
    assert await cache.get_many(["a"]) == [b"new"]
    await asyncio.sleep(0.3)
    assert await cache.get_many(["a"]) == [None]


async def test_a_hung_server_costs_its_time_out_a_few_times_and_then_nothing(start_server) -> None:
    server = start_server(role="cache")
    now = [0.0]
    cache = RedisCache(server.url, timeout_s=0.05, pause_s=1.0, clock=lambda: now[0])
    patient = RedisCache(server.url, timeout_s=2.0)
    await patient.put("a", b"1", ttl_s=60)
    await patient.close()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        for _ in range(50):
            with pytest.raises(StoreError):
                await cache.get_many(["a"])
        assert time.monotonic() - started < 0.05 * FAILURES_BEFORE_PAUSE + 1.0
    finally:
        os.kill(server.pid, signal.SIGCONT)
    with pytest.raises(StoreError):
        await cache.get_many(["a"])
    now[0] = 1.0
    for _ in range(FAILURES_BEFORE_PAUSE - 1):  # a busy machine may need a moment to take the server up again
        try:
            assert await cache.get_many(["a"]) == [b"1"]
            break
        except StoreError:
            now[0] += 1.0
    else:
        assert await cache.get_many(["a"]) == [b"1"]
    await cache.close()


async def test_a_wrong_password_is_an_error_and_not_a_miss(start_server) -> None:
    server = start_server(role="cache")
    cache = RedisCache(f"redis://:wrong@127.0.0.1:{server.port}/0", timeout_s=2.0)
    with pytest.raises(StoreError):
        await cache.get_many(["a"])
    await cache.close()


async def test_reasons_outlive_the_process_that_wrote_them_and_a_dead_server_is_only_a_miss(start_server) -> None:
    server = start_server(role="cache")
    evidence = Evidence()
    writer_store, reader_store = RedisCache(server.url, timeout_s=2.0), RedisCache(server.url, timeout_s=2.0)
    writer = TieredReasons("m", shared=writer_store)
    writer.keep(evidence, "en", "main", "Something different to explore.")
    await writer.flush()
    reader = TieredReasons("m", shared=reader_store)
    found = await reader.find([evidence], language="en", tenant="main")
    assert found.texts == ("Something different to explore.",) and reader.counts["shared"] == 1
    server.stop()
    other = Evidence("Heat")
    found = await reader.find([evidence, other], language="en", tenant="main")
    assert found.texts == ("Something different to explore.", None) and not found.complete
    writer.keep(other, "en", "main", "Have a look at Heat.")
    await writer.flush()
    assert writer.counts["not_shared"] == 1
    for store in (writer_store, reader_store):
        await store.close()
