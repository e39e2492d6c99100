"""One interface over a single server and a cluster: commands in, results or errors out, one pipeline a node.

Called by `RedisStore` only. Knows nothing of events: it routes by key, confirms `WAITAOF` on the connection that
wrote, follows a cluster that moved, and turns the client library's errors into ours.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode, PipelineCommand
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MovedError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from models.store.port import CommandRefused, FunctionMissing, StoreTimeout, StoreUnavailable

Command = tuple[Any, ...]
"""A command and its arguments."""

Result = Any
"""A reply, or the `StoreError` of this one command."""


_ERRORS = (RedisError, RedisClusterException)
_MOVED = (MovedError, TryAgainError, ClusterDownError, RedisConnectionError, RedisClusterException)


class Servers(Protocol):
    """Where commands go. Every result list has the order of its commands; errors are results, not raised."""

    async def run(self, commands: Sequence[tuple[str, Command]], *, wait_ms: int | None = None) -> list[Result]:
        """Run (key, command) pairs, one round trip per node; `wait_ms` adds WAITAOF on each connection."""
        ...

    async def everywhere(self, command: Command) -> dict[str, Result]:
        """Run a command on every primary; results by node name."""
        ...

    async def names(self) -> frozenset[str]:
        """Names of the primaries known now."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


def _options(*, timeout_s: float, connect_timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": connect_timeout_s, "client_name": "raycommend"}


def _wait(wait_ms: int) -> Command:
    return ("WAITAOF", 1, 0, wait_ms)


def _confirmed(results: list[Result], wait_ms: int | None) -> list[Result]:
    """Take WAITAOF's reply off the end; where it failed or ran out of time it replaces every success before it."""
    if wait_ms is None:
        return results
    *results, waited = results
    if not isinstance(waited, Exception):
        if waited[0] >= 1:
            return results
        waited = RedisTimeoutError("the append-only file was not synchronised in time")
    return [result if isinstance(result, Exception) else waited for result in results]


class SingleServer:
    """One server, or whatever hides behind one address."""

    def __init__(self, url: str, *, timeout_s: float, connect_timeout_s: float, connections: int) -> None:
        # One retry, for a connection that the server closed while it idled. A time-out is never retried.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        options = _options(timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)
        pool = ConnectionPool.from_url(url, max_connections=connections, retry=retry, **options)
        self._client = Redis(connection_pool=pool)

    async def run(self, commands: Sequence[tuple[str, Command]], *, wait_ms: int | None = None) -> list[Result]:
        """See `Servers.run`."""
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for _, command in commands:
                    pipe.execute_command(*command)
                if wait_ms is not None:
                    pipe.execute_command(*_wait(wait_ms))
                results: list[Result] = await pipe.execute(raise_on_error=False)
        except RedisError as error:
            return [_translated(error)] * len(commands)
        return [_translated(result) for result in _confirmed(results, wait_ms)]

    async def everywhere(self, command: Command) -> dict[str, Result]:
        """See `Servers.everywhere`."""
        return {"": (await self.run([("", command)]))[0]}

    async def names(self) -> frozenset[str]:
        """See `Servers.names`."""
        return frozenset({""})

    async def close(self) -> None:
        """See `Servers.close`."""
        await self._client.aclose()
        await self._client.connection_pool.aclose()


class ClusterServers:
    """A server in cluster mode. A node that fails does not touch the commands of the others.

    While a slot moves key by key, commands of several keys are refused there (ASK, TRYAGAIN) and so are ours: writers
    have to send again. Atomic slot migration (Valkey 9) has no such moment.
    """

    def __init__(self, url: str, *, timeout_s: float, connect_timeout_s: float, connections: int) -> None:
        # A node that hangs must leave time to report on the others.
        options = _options(timeout_s=0.8 * timeout_s, connect_timeout_s=connect_timeout_s)
        self._client = RedisCluster.from_url(
            url, max_connections=connections, retry=Retry(NoBackoff(), 0), require_full_coverage=False, **options
        )

    async def run(self, commands: Sequence[tuple[str, Command]], *, wait_ms: int | None = None) -> list[Result]:
        """See `Servers.run`."""
        results = await self._scatter(commands, wait_ms)
        moved = [i for i, result in enumerate(results) if isinstance(result, _MOVED)]
        if moved:
            # The map is old, a node is gone or a connection had gone stale: learn the map and try those once more.
            await self._refresh()
            again = await self._scatter([commands[i] for i in moved], wait_ms)
            for i, result in zip(moved, again, strict=True):
                results[i] = result
        return [_translated(result) for result in results]

    async def _scatter(self, commands: Sequence[tuple[str, Command]], wait_ms: int | None) -> list[Result]:
        results: list[Result] = [None] * len(commands)
        groups: dict[str, tuple[ClusterNode, list[int]]] = {}
        try:
            await self._client.initialize()
        except _ERRORS as error:
            return [error] * len(commands)
        for i, (key, _) in enumerate(commands):
            try:
                node = self._client.get_node_from_key(key)
                if node is None:
                    raise ClusterDownError("no primary serves this slot")
            except _ERRORS as error:
                results[i] = error
            else:
                groups.setdefault(node.name, (node, []))[1].append(i)

        async def on_node(node: ClusterNode, positions: list[int]) -> None:
            replies = await _pipeline(node, [commands[i][1] for i in positions], wait_ms)
            for i, reply in zip(positions, replies, strict=True):
                results[i] = reply

        await asyncio.gather(*(on_node(node, positions) for node, positions in groups.values()))
        return results

    async def _refresh(self) -> None:
        # Without success the second attempt reports what is wrong.
        with contextlib.suppress(*_ERRORS):
            await self._client.nodes_manager.initialize()

    async def everywhere(self, command: Command) -> dict[str, Result]:
        """See `Servers.everywhere`."""
        try:
            await self._client.initialize()
        except _ERRORS as error:
            return {"": _translated(error)}
        nodes = self._client.get_primaries()
        replies = await asyncio.gather(*(_pipeline(node, [command], None) for node in nodes))
        return {node.name: _translated(reply[0]) for node, reply in zip(nodes, replies, strict=True)}

    async def names(self) -> frozenset[str]:
        """See `Servers.names`."""
        try:
            await self._client.initialize()
        except _ERRORS as error:
            raise _translated(error) from None
        return frozenset(node.name for node in self._client.get_primaries())

    async def close(self) -> None:
        """See `Servers.close`."""
        await self._client.aclose()


async def _pipeline(node: ClusterNode, commands: Sequence[Command], wait_ms: int | None) -> list[Result]:
    sent = [PipelineCommand(i, *c) for i, c in enumerate(commands if wait_ms is None else [*commands, _wait(wait_ms)])]
    try:
        await node.execute_pipeline(sent)
    except RedisError as error:
        return [error] * len(commands)
    return _confirmed([command.result for command in sent], wait_ms)


def _translated(result: Result) -> Result:
    """Return our error for theirs. Server messages may quote keys, which hold user ids: only their kind is kept."""
    if not isinstance(result, Exception):
        return result
    if isinstance(result, RedisTimeoutError):
        return StoreTimeout("the store did not answer in time")
    if isinstance(result, AuthenticationError):
        return StoreUnavailable("the store refuses this user or password")
    if isinstance(result, ResponseError):
        if "function not found" in str(result).lower():
            return FunctionMissing("the store lacks our functions")
        code = str(result).split(" ", 1)[0]
        kind = code if code.isupper() else type(result).__name__
        return CommandRefused(f"the store refused a command: {kind}")
    return StoreUnavailable(f"the store cannot be reached: {type(result).__name__}")
