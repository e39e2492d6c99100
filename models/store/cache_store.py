"""The cache store: values that may be lost at any time, on a server that evicts what is used least.

Whoever reads it goes on without it: nothing here waits longer than some 20 ms, and a server that keeps failing is left
alone for a second, so that no request waits for it again and again. Knows nothing of what the values mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from models.store.port import StoreError, StoreTimeout, StoreUnavailable

if TYPE_CHECKING:
    from models.store.servers import Servers

FAILURES_BEFORE_PAUSE = 3


class CacheStore(Protocol):
    """Keys to bytes, for a while. All methods are coroutines; an instance belongs to one event loop."""

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return one value per key, None where there is none (any more). Raises StoreError when it cannot tell."""
        ...

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """Keep `value` for at most `ttl_s` seconds. Raises StoreError when it was not kept."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class RedisCache:
    """A `CacheStore` on one Redis or Valkey server. Connects at the first call."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.02,
        pause_s: float = 1.0,
        connections: int = 16,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """After `FAILURES_BEFORE_PAUSE` failures in a row every call fails at once for `pause_s` seconds."""
        from models.store.servers import SingleServer  # here, because the client library loads slowly

        self._servers: Servers = SingleServer(
            url, timeout_s=timeout_s, connect_timeout_s=timeout_s, connections=connections
        )
        self._slots = asyncio.Semaphore(connections)
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._resume_at = 0.0

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `CacheStore.get_many`; one round trip."""
        return await self._run([(key, ("GET", key)) for key in keys]) if keys else []

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """See `CacheStore.put`."""
        await self._run([(key, ("SET", key, value, "PX", max(1, int(ttl_s * 1000))))])

    async def close(self) -> None:
        """See `CacheStore.close`."""
        await self._servers.close()

    async def _run(self, commands: list[tuple[str, tuple[object, ...]]]) -> list[bytes | None]:
        if self._clock() < self._resume_at:
            raise StoreUnavailable("the cache store failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s), self._slots:
                replies = await self._servers.run(commands)
            for reply in replies:
                if isinstance(reply, StoreError):
                    raise reply
        except TimeoutError:
            self._failed()
            raise StoreTimeout(f"the cache store did not answer within {self._timeout_s * 1000:.0f} ms") from None
        except StoreError:
            self._failed()
            raise
        self._failures = 0
        return replies

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES_BEFORE_PAUSE:
            self._resume_at = self._clock() + self._pause_s


class MemoryCache:
    """A `CacheStore` of this process, for tests and for what runs alone. `error` is raised by every call when set."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.values: dict[str, tuple[float, bytes]] = {}
        self.error: StoreError | None = None
        self.calls = 0

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """See `CacheStore.get_many`."""
        self._meet()
        held = [self.values.get(key, (0.0, b"")) for key in keys]
        return [value if expires > self._clock() else None for expires, value in held]

    async def put(self, key: str, value: bytes, *, ttl_s: float) -> None:
        """See `CacheStore.put`."""
        self._meet()
        self.values[key] = (self._clock() + ttl_s, value)

    async def close(self) -> None:
        """See `CacheStore.close`."""

    def _meet(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
