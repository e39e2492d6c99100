"""The embedded server: private, on its own port, gone when told to go."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from cluster.valkey import ValkeyServer, ValkeyStartError, start_valkey

PASSWORD = 's3cret "with" quotes \\ and é'


@pytest.fixture
def port() -> int:
    for port in range(24_000 + os.getpid() % 4_000, 32_000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise RuntimeError("no free port")


@pytest.fixture
def start(tmp_path: Path, port: int) -> Iterator[Callable[..., ValkeyServer]]:
    started: list[ValkeyServer] = []

    def one(**options: object) -> ValkeyServer:
        fields = {"folder": tmp_path, "port": port, "role": "store", "password": PASSWORD, **options}
        started.append(start_valkey(**fields))  # type: ignore[arg-type]
        return started[-1]

    yield one
    for server in started:
        server.stop()


def test_the_password_is_needed_and_stays_in_a_private_file(start: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    (tmp_path / "valkey.conf").write_text("open to all")
    server = start()
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert stat.S_IMODE((tmp_path / "valkey.conf").stat().st_mode) == 0o600
    process = psutil.Process(server.pid)
    assert not any("s3cret" in part for part in [*process.cmdline(), *process.environ().values(), repr(server)])
    assert abs(process.create_time() - server.started) < 0.1


def test_it_listens_on_loopback_only(start: Callable[..., ValkeyServer]) -> None:
    server = start()
    addresses = {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}


def test_a_store_syncs_every_write_and_never_evicts(start: Callable[..., ValkeyServer]) -> None:
    with redis.Redis.from_url(start().url, decode_responses=True) as client:
        found = client.config_get("append*", "maxmemory*")
    assert (found["appendonly"], found["appendfsync"], found["maxmemory-policy"]) == ("yes", "always", "noeviction")


def test_a_cache_evicts_and_writes_no_file(start: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    server = start(role="cache", max_memory_bytes=4 * 2**20)
    with redis.Redis.from_url(server.url) as client:
        for i in range(100):
            client.set(f"k{i}", b"x" * 100_000)
        assert 0 < client.dbsize() < 100
    server.stop()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["valkey.conf", "valkey.log"]


def test_a_stopped_server_is_gone_and_its_data_is_not(start: Callable[..., ValkeyServer]) -> None:
    server = start()
    with redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
    server.stop()
    server.stop()
    assert not server.is_running() and not psutil.pid_exists(server.pid)
    with redis.Redis.from_url(start().url) as client:
        assert client.get("k") == b"v"


def test_a_taken_port_is_refused_with_its_holder(start: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    server = start()
    with pytest.raises(ValkeyStartError, match=rf"port {server.port} .* taken by .*pid {server.pid}.* another port"):
        start(folder=tmp_path / "other")
    assert server.is_running()


def test_a_server_that_cannot_start_says_why(start: Callable[..., ValkeyServer]) -> None:
    with pytest.raises(ValkeyStartError, match="ended with code 1"):
        start(extra=["no-such-setting yes"])


def test_another_process_with_the_pid_is_left_alone(start: Callable[..., ValkeyServer], tmp_path: Path) -> None:
    server = start()
    impostor = ValkeyServer(server.pid, server.started - 100, server.port, tmp_path, PASSWORD)
    impostor.stop()
    assert not impostor.is_running() and server.is_running()
