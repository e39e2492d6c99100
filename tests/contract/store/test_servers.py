"""What only a real server can show: durability, restarts, time-outs, access rules, a cluster that loses a node."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import redis

from cluster.valkey import ValkeyServer, start_valkey, start_valkey_trio
from models.events import Event, EventType
from models.ids import bucket_of
from models.store.port import (
    EventStatus,
    StoreError,
    StoreLimits,
    StoreMismatch,
    StoreTimeout,
    StoreUnavailable,
)
from models.store.redis_store import META_KEY, RedisStore

NOW = int(time.time() * 1000)


def click(number: int, owner: str = "u1") -> Event:
    return Event(f"e{number}", owner, EventType.click, NOW + number, f"i{number}")


@pytest.fixture
async def connect() -> AsyncIterator:
    """Opens stores and closes them after the test."""
    opened: list[RedisStore] = []

    def one(url: str | ValkeyServer, **options: object) -> RedisStore:
        options.setdefault("write_timeout_s", 5.0)
        opened.append(RedisStore(url if isinstance(url, str) else url.url, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield one
    for store in opened:
        await store.close()


def tell(server: ValkeyServer, *command: object) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.execute_command(*command)


async def test_an_acknowledged_event_survives_a_killed_server(start_server, connect, binary: Path | None) -> None:
    server = start_server(binary=binary)
    store = connect(server)
    assert await store.append("main", [click(1), click(2)], now_ms=NOW) == [EventStatus.accepted] * 2
    assert await store.move_release("main", "{}", expected_epoch=0)
    process = psutil.Process(server.pid)
    process.kill()
    await asyncio.to_thread(process.wait, 10)
    with pytest.raises(StoreUnavailable):
        await store.fetch("main", "u1", None, timeout_s=5)
    start_server(binary=binary, port=server.port)
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i1", "i2")
    assert await store.append("main", [click(1), click(3)], now_ms=NOW) == [EventStatus.duplicate, EventStatus.accepted]
    assert await store.read_release("main") == ("{}", 1)


async def test_events_are_refused_where_they_could_be_lost(start_server, connect, binary: Path | None) -> None:
    server = start_server(binary=binary, extra=["appendonly no"])
    store = connect(server)
    assert await store.durability() == "none"
    with pytest.raises(StoreUnavailable, match="appendfsync always"):
        await store.append("main", [click(1)], now_ms=NOW)
    with pytest.raises(StoreUnavailable, match="appendfsync always"):
        await store.move_release("main", "{}", expected_epoch=0)
    assert not (await store.fetch("main", "u1", None, timeout_s=5)).known
    careless = connect(server, require_durable=False)
    assert await careless.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]


async def test_without_fsync_on_every_write_only_waitaof_makes_events_durable(
    start_server, connect, binary: Path | None
) -> None:
    store = connect(start_server(binary=binary, extra=["appendfsync everysec"]))
    if binary is None:
        assert await store.durability() == "fsync"
        assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]
        assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.duplicate]
    else:  # Redis 7.0 has no WAITAOF
        assert await store.durability() == "none"
        with pytest.raises(StoreUnavailable):
            await store.append("main", [click(1)], now_ms=NOW)


async def test_a_file_that_is_not_synchronised_in_time_is_no_success(start_server, connect) -> None:
    server = start_server(extra=["appendfsync everysec"])
    store = connect(server)
    await store.append("main", [click(0)], now_ms=NOW)
    tell(server, "CONFIG", "SET", "appendfsync", "no")
    store._write_timeout_s = 0.3
    with pytest.raises(StoreTimeout):
        await store.append("main", [click(1)], now_ms=NOW)


async def test_a_server_that_hangs_costs_no_more_than_the_time_allowed(start_server, connect) -> None:
    server = start_server()
    store = connect(server, write_timeout_s=0.3)
    await store.append("main", [click(1)], now_ms=NOW)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for call, bound in [
            (store.fetch("main", "u1", None, timeout_s=0.05), 0.05),
            (store.append("main", [click(2)], now_ms=NOW), 0.3),
            (store.ping(), 0.3),
        ]:
            start = time.monotonic()
            with pytest.raises(StoreTimeout):
                await call
            assert time.monotonic() - start < bound + 0.2
        hundred = [store.fetch("main", "u1", None, timeout_s=0.05) for _ in range(100)]
        start = time.monotonic()
        assert all(isinstance(r, StoreTimeout) for r in await asyncio.gather(*hundred, return_exceptions=True))
        assert time.monotonic() - start < 0.5
    finally:
        os.kill(server.pid, signal.SIGCONT)
    # An event whose acknowledgement was lost is stored once, whatever the first attempt did.
    assert (await store.append("main", [click(2)], now_ms=NOW))[0] in (EventStatus.accepted, EventStatus.duplicate)
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i1", "i2")


async def test_a_call_given_up_never_leaves_its_answer_to_the_next_one(start_server, connect) -> None:
    server = start_server()
    store = connect(server, connections=2)
    await store.append("main", [click(i, f"u{i}") for i in range(20)], now_ms=NOW)
    for round_number in range(5):
        os.kill(server.pid, signal.SIGSTOP)
        pending = [asyncio.ensure_future(store.fetch("main", f"u{i}", None, timeout_s=1)) for i in range(4)]
        await asyncio.sleep(0.005 * round_number)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        os.kill(server.pid, signal.SIGCONT)
        for i in range(4, 20):
            assert (await store.fetch("main", f"u{i}", None, timeout_s=5)).item_ids == (f"i{i}",)


async def test_a_server_that_lost_the_functions_gets_them_again(start_server, connect) -> None:
    server = start_server()
    store = connect(server)
    await store.append("main", [click(1)], now_ms=NOW)
    tell(server, "FUNCTION", "FLUSH")
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i1",)
    tell(server, "FUNCTION", "FLUSH")
    assert await store.append("main", [click(2)], now_ms=NOW) == [EventStatus.accepted]


async def test_a_store_made_with_other_settings_is_refused_by_name(start_server, connect) -> None:
    server = start_server()
    await connect(server).ping()
    other = connect(server, limits=StoreLimits(buckets=128))
    with pytest.raises(StoreMismatch, match="created with buckets 256, this process wants 128"):
        await other.fetch("main", "u1", None, timeout_s=5)
    tell(server, "HSET", META_KEY, "schema", 99)
    with pytest.raises(StoreMismatch, match="schema version 99"):
        await connect(server).append("main", [click(1)], now_ms=NOW)


async def test_values_that_cannot_be_read_are_skipped_and_counted(start_server, connect) -> None:
    server = start_server()
    store = connect(server)
    await store.append("main", [click(1)], now_ms=NOW)
    tag = f"{{main:{bucket_of('u1')}}}"
    head = b"\x01\x02" + bytes(12)
    for garbage in (b"", b"short", b"\x63" + bytes(20), b"\x01\xff" + bytes(20), head + b"\xff", head + b"a\0b"):
        tell(server, "RPUSH", f"{tag}r:u1", garbage)
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert (found.item_ids, store.skipped_records) == (("i1",), 6)
    assert await store.append("main", [click(2), click(0)], now_ms=NOW) == [EventStatus.accepted] * 2
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i0", "i1", "i2")
    tell(server, "SET", f"{tag}s:u1", "nonsense?")
    store.skipped_records = 0
    found = await store.fetch("main", "u1", None, timeout_s=5)
    assert (len(found.item_ids), len(found.seen), store.skipped_records) == (3, 0, 7)
    assert await store.append("main", [click(5)], now_ms=NOW) == [EventStatus.accepted]
    assert len((await store.fetch("main", "u1", None, timeout_s=5)).seen) == 1


async def test_one_damaged_bucket_does_not_fail_the_others(start_server, connect) -> None:
    server = start_server()
    store = connect(server)
    tell(server, "SET", f"{{main:{bucket_of('u1')}}}ev", "not a stream")
    statuses = await store.append("main", [click(1), click(2, "u2"), click(3)], now_ms=NOW)
    assert statuses == [EventStatus.failed, EventStatus.accepted, EventStatus.failed]
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store.append("main", [click(1)], now_ms=NOW)
    tell(server, "DEL", f"{{main:{bucket_of('u1')}}}ev")
    assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]


async def test_the_stream_is_bounded_and_holds_every_type(start_server, connect) -> None:
    from models.store.codec import decode_stream

    server = start_server()
    store = connect(server, limits=StoreLimits(stream_events=100))
    events = [
        click(1),
        Event("e2", "u1", EventType.impression, NOW, "i2", decision_id="d"),
        Event("e3", "u1", EventType.search, NOW, value=2.5),
    ]
    await store.append("main", events, now_ms=NOW)
    key = f"{{main:{bucket_of('u1')}}}ev"
    assert [decode_stream(fields[b"d"]) for _, fields in tell(server, "XRANGE", key, "-", "+")] == events  # type: ignore[attr-defined]
    await store.append("main", [click(i) for i in range(10, 500)], now_ms=NOW)
    assert 100 <= int(str(tell(server, "XLEN", key))) <= 250


async def test_event_ids_are_kept_for_seven_days(start_server, connect) -> None:
    server = start_server()
    await connect(server).append("main", [click(1)], now_ms=NOW)
    (key,) = [k for k in tell(server, "KEYS", "*e:*")]  # type: ignore[attr-defined]
    assert 6.9 * 86_400_000 < int(str(tell(server, "PTTL", key))) <= 7 * 86_400_000


async def test_an_acl_user_without_config_is_judged_by_waitaof(start_server, connect) -> None:
    rules = "user feeder on >secret ~{*}* ~raycommend:* +@all -@dangerous"
    server = start_server(extra=[rules])
    store = connect(f"redis://feeder:secret@127.0.0.1:{server.port}/0")
    assert await store.durability() == "fsync"
    assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]
    assert (await store.fetch("main", "u1", None, timeout_s=5)).known


async def test_tls_is_spoken_and_the_certificate_is_checked(
    start_server, connect, free_ports_of, debian_redis, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=store"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    await asyncio.to_thread(subprocess.run, make, check=True, capture_output=True)
    (port,) = free_ports_of(1)
    extra = [f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}", "tls-auth-clients no"]
    extra += [f"tls-ca-cert-file {certificate}", "user feeder on >secret ~* +@all"]
    start_server(binary=debian_redis, port=free_ports_of(2)[1], extra=extra)  # the embedded build has no TLS
    url = f"rediss://feeder:secret@127.0.0.1:{port}/0"
    store = connect(f"{url}?ssl_ca_certs={certificate}")
    assert await store.append("main", [click(1)], now_ms=NOW) == [EventStatus.accepted]
    assert (await store.fetch("main", "u1", None, timeout_s=5)).known
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await connect(url).ping()


async def test_a_wrong_password_is_said_without_secrets(start_server, connect) -> None:
    server = start_server()
    with pytest.raises(StoreUnavailable, match="user or password") as caught:
        await connect(f"redis://:wrong-one@127.0.0.1:{server.port}/0").fetch("main", "u1", None, timeout_s=5)
    assert "wrong-one" not in str(caught.value)


async def test_nobody_listening_is_unavailable_at_once(connect) -> None:
    store = connect("redis://127.0.0.1:1/0")
    for call in (store.fetch("main", "u1", None, timeout_s=5), store.append("main", [click(1)], now_ms=NOW)):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await call
    with pytest.raises(StoreUnavailable):
        await store.ping()


def test_errors_survive_the_way_between_processes() -> None:
    for kind in (StoreError, StoreUnavailable, StoreTimeout, StoreMismatch):
        copy = pickle.loads(pickle.dumps(kind("why")))
        assert type(copy) is kind and copy.args == ("why",)


@pytest.fixture
def trio(tmp_path: Path, free_ports_of) -> AsyncIterator[list[ValkeyServer]]:
    servers = start_valkey_trio(tmp_path, ports=free_ports_of(6), password="pw")
    yield servers
    for server in servers:
        server.stop()


async def test_a_lost_cluster_node_takes_only_its_own_buckets_with_it(trio, connect) -> None:
    store = connect(trio[0], cluster=True, write_timeout_s=2.0)
    events = [click(i, f"u{i}") for i in range(60)]
    assert set(await store.append("main", events, now_ms=NOW)) == {EventStatus.accepted}
    trio[2].stop()
    for _ in range(2):
        statuses = await store.append("main", events, now_ms=NOW)
        assert set(statuses) == {EventStatus.duplicate, EventStatus.failed}
        assert 10 <= statuses.count(EventStatus.failed) <= 30
    lost = statuses.index(EventStatus.failed)
    with pytest.raises(StoreUnavailable):
        await store.fetch("main", f"u{lost}", None, timeout_s=2)
    lines = (trio[2].folder / "valkey.conf").read_text().splitlines()
    extra = [line for line in lines if line.startswith("cluster-")]
    trio[2] = start_valkey(trio[2].folder, port=trio[2].port, role="store", password="pw", extra=extra)
    end = time.monotonic() + 10
    while time.monotonic() < end and EventStatus.failed in statuses:
        statuses = await store.append("main", events, now_ms=NOW)
        await asyncio.sleep(0.1)
    assert set(statuses) == {EventStatus.duplicate}


async def test_a_slot_that_moves_is_followed(trio, connect) -> None:
    store = connect(trio[0], cluster=True)
    await store.ping()
    slot = slot_of(trio, "u1")
    ids = [str(tell(s, "CLUSTER", "MYID"), "ascii") for s in trio]  # type: ignore[arg-type]
    owner = next(i for i, s in enumerate(trio) if bounds_of(i)[0] <= slot < bounds_of(i)[1])
    other = (owner + 1) % 3
    tell(trio[other], "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
    tell(trio[owner], "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[other])
    elsewhere = next(
        f"u{i}" for i in range(9999) if bounds_of(other)[0] <= slot_of(trio, f"u{i}") < bounds_of(other)[1]
    )
    statuses = await store.append("main", [click(1), click(3, elsewhere)], now_ms=NOW)
    assert statuses == [EventStatus.failed, EventStatus.accepted]
    for server in (trio[other], trio[owner], trio[3 - owner - other]):
        tell(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[other])
    assert await store.append("main", [click(1), click(2)], now_ms=NOW) == [EventStatus.accepted] * 2
    assert (await store.fetch("main", "u1", None, timeout_s=5)).item_ids == ("i1", "i2")


def slot_of(trio: list[ValkeyServer], owner: str) -> int:
    return int(str(tell(trio[0], "CLUSTER", "KEYSLOT", f"{{main:{bucket_of(owner)}}}")))


def bounds_of(node: int) -> tuple[int, int]:
    return [(0, 5461), (5461, 10922), (10922, 16384)][node]
