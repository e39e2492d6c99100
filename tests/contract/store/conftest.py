"""Every store the contract holds for: in memory, embedded Valkey, a cluster of three, Debian's Redis."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.valkey import ValkeyServer, start_valkey, start_valkey_trio
from models.store.memory import MemoryStore
from models.store.port import OnlineStore
from models.store.profiles import MemoryProfiles, ProfileStore, RedisProfiles
from models.store.redis_store import RedisStore

PASSWORD = 'a "quoted" pass#word'
KINDS = ("memory", "valkey", "cluster", "redis")


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, below the range that outgoing connections take theirs from."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 8_000, 32_000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def redis_binary() -> Path:
    found = shutil.which("redis-server")
    if found:
        return Path(found)
    if os.environ.get("CI"):
        pytest.fail("redis-server is missing: apt-get install redis-server")
    pytest.skip("apt-get install redis-server")


@dataclass
class Backend:
    """One kind of store, its servers, and how to open it."""

    kind: str
    servers: list[ValkeyServer] = field(default_factory=list)

    def open(self, *, of: tuple[Any, Any] = (MemoryStore, RedisStore), **options: Any) -> Any:
        """Open a store: the first of `of` in memory, the second on a server."""
        in_memory, on_server = of
        if self.kind == "memory":
            options.setdefault("durability", "fsync")
            options.pop("write_timeout_s", None)
            return in_memory(**options)
        options.setdefault("write_timeout_s", 5.0)
        return on_server(self.servers[0].url, cluster=self.kind == "cluster", **options)

    def clear(self) -> None:
        import redis

        for server in self.servers:
            with redis.Redis.from_url(server.url) as client:
                client.flushall()


@pytest.fixture(scope="session", params=KINDS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    kind: str = request.param
    folder = tmp_path_factory.mktemp(kind)
    servers: list[ValkeyServer] = []
    if kind == "cluster":
        servers = start_valkey_trio(folder, ports=free_ports(6), password=PASSWORD)
    elif kind != "memory":
        binary = redis_binary() if kind == "redis" else None
        servers = [start_valkey(folder, port=free_ports(1)[0], role="store", password=PASSWORD, binary=binary)]
    yield Backend(kind, servers)
    for server in servers:
        server.stop()


@pytest.fixture
def fresh(backend: Backend) -> Backend:
    """The backend, emptied."""
    backend.clear()
    return backend


OpenStore = Callable[..., Awaitable[Any]]


@pytest.fixture
async def open_store(fresh: Backend) -> AsyncIterator[OpenStore]:
    """Opens stores on the emptied backend and closes them after the test."""
    async with _opening(fresh.open) as open_one:
        yield open_one


@pytest.fixture
async def store(open_store: OpenStore) -> OnlineStore:
    return await open_store()


@pytest.fixture
async def open_profiles(fresh: Backend) -> AsyncIterator[OpenStore]:
    """Opens profile stores in the same way."""
    async with _opening(lambda **options: fresh.open(of=(MemoryProfiles, RedisProfiles), **options)) as open_one:
        yield open_one


@pytest.fixture
async def profiles(open_profiles: OpenStore) -> ProfileStore:
    return await open_profiles()


@asynccontextmanager
async def _opening(open_one: Callable[..., OnlineStore]) -> AsyncIterator[OpenStore]:
    opened: list[OnlineStore] = []

    async def one(**options: Any) -> Any:
        opened.append(open_one(**options))
        return opened[-1]

    yield one
    for store in opened:
        await store.close()


StartServer = Callable[..., ValkeyServer]


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of a test's own, to be paused or killed; `name` keeps data over a restart."""
    started: list[ValkeyServer] = []

    def start(name: str = "own", **options: Any) -> ValkeyServer:
        options.setdefault("role", "store")
        if "port" not in options:
            options["port"] = free_ports(1)[0]
        started.append(start_valkey(tmp_path / name, password=PASSWORD, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path | None:
    return redis_binary() if request.param == "redis" else None


@pytest.fixture
def free_ports_of() -> Callable[[int], list[int]]:
    return free_ports


@pytest.fixture
def debian_redis() -> Path:
    return redis_binary()
