"""The consumer as a process on a real store: killed again and again, it ends where an undisturbed one ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.valkey import ValkeyServer, start_valkey
from models.behaviour.snapshot import LiveStatistics
from models.consumer.event_log import read_event_log
from models.events import Event, EventType
from models.ids import BUCKETS
from models.store.port import StoreLimits
from models.store.streams import EventStreams, Group
from pipelines.consumer import STORE_URL, open_streams

NOW = int(time.time() * 1000)
SETTINGS = {"batch": 2, "log_s": 0.2, "log_files": 4, "snapshot_s": 0.2, "idle_s": 0.02}
KINDS = (EventType.click, EventType.view, EventType.purchase, EventType.hide)
AS_IT_CAME = StoreLimits(repeat_window_s=0)
"""By chance a user does the same twice in a moment: here that counts."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = start_valkey(tmp_path / "store", port=port, role="store", password="pw")
    yield started
    started.stop()


def start_consumer(server: ValkeyServer, log: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.consumer", "--log", str(log), "--settings", json.dumps(SETTINGS)]
    environment = {**os.environ, STORE_URL: server.url}
    return subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, text=True)


async def append_to(streams: EventStreams, tenants: tuple[str, ...], count: int, *, start: int) -> None:
    chance = random.Random(start)
    events = [
        Event(f"e{i}", f"u{chance.randrange(40)}", chance.choice(KINDS), NOW + i, f"i{chance.randrange(60)}")
        for i in range(start, start + count)
    ]
    for tenant in tenants:
        await streams.append(tenant, events, now_ms=NOW)


async def counted(streams: EventStreams, tenant: str) -> LiveStatistics:
    found = await streams.read_statistics(tenant)
    assert found is not None
    return LiveStatistics.from_bytes(found[0])


async def test_a_consumer_killed_again_and_again_counts_and_logs_everything_once(
    server: ValkeyServer, tmp_path: Path
) -> None:
    streams, chance, killed = open_streams(server.url, limits=AS_IT_CAME), random.Random(7), 0
    try:
        for round_number in range(4):
            await append_to(streams, ("killed", "calm"), 400, start=round_number * 400)
            process = start_consumer(server, tmp_path / "killed", "--tenant", "killed")
            deadline = time.monotonic() + 20
            before = (await streams.lag("killed", group=Group.statistics)).entries
            # Until it is at work: then in the middle of it.
            while (await streams.lag("killed", group=Group.statistics)).entries == before > 0:
                assert time.monotonic() < deadline, "the consumer never started"
                await asyncio.sleep(0.01)
            await asyncio.sleep(chance.random() * 0.15)
            process.kill()
            await asyncio.to_thread(process.communicate)
            killed += process.returncode == -signal.SIGKILL
        for tenant in ("killed", "calm"):
            process = start_consumer(server, tmp_path / tenant, "--tenant", tenant, "--once")
            out, _ = await asyncio.to_thread(process.communicate, timeout=60)
            assert process.returncode == 0 and json.loads(out)["lag"]["statistics"]["entries"] == 0
        assert killed == 4
        one, other = await counted(streams, "killed"), await counted(streams, "calm")
        assert one.to_bytes() == other.to_bytes() and one.events == 1600
        fields = [await streams.read_state(t, range(BUCKETS), group=Group.statistics) for t in ("killed", "calm")]
        assert fields[0].keys() == fields[1].keys()
        assert all(fields[0][bucket][1] == fields[1][bucket][1] for bucket in fields[0])
        logs = [read_event_log(tmp_path / tenant) for tenant in ("killed", "calm")]
        rows = [sorted(map(str, log.to_arrow().to_pylist())) for log in logs]
        assert len(rows[0]) == 1600 and rows[0] == rows[1]
    finally:
        await streams.close()


async def test_a_consumer_told_to_stop_writes_what_it_holds_and_reports(server: ValkeyServer, tmp_path: Path) -> None:
    streams = open_streams(server.url, limits=AS_IT_CAME)
    try:
        process = start_consumer(server, tmp_path / "log")
        await append_to(streams, ("main",), 100, start=0)
        deadline = time.monotonic() + 20
        while (await streams.lag("main", group=Group.statistics)).entries:
            assert time.monotonic() < deadline, "the consumer never caught up"
            await asyncio.sleep(0.02)
        process.terminate()
        out, _ = await asyncio.to_thread(process.communicate, timeout=20)
        state = json.loads(out)
        assert process.returncode == 0
        assert (state["applied"], state["logged"]) == (100, len(read_event_log(tmp_path / "log"))) == (100, 100)
        assert {lag["entries"] for lag in state["lag"].values()} == {0} and state["version"] >= 1
    finally:
        await streams.close()
