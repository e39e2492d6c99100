"""Who listens on a port, and the refusal to start where one is taken.

HAProxy binds with SO_REUSEPORT: a second one on the same port starts without complaint and shares the traffic with the
first, so a free port must be checked before anything starts. Called by `up` and the preflight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from cluster import processes
from cluster.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Listener:
    """Who holds a port; `pid` is None where this user may not know, `state` is set where it is one of ours."""

    port: int
    pid: int | None
    name: str
    command: str
    state: str | None

    def __str__(self) -> str:
        """Name the program and its pid, as far as they are known."""
        if self.pid is None:
            return "a process of another user"
        return f"{self.name} (pid {self.pid}: {self.command})" if self.command else f"{self.name} (pid {self.pid})"


class PortsTaken(OperatorError):
    """Ports this start needs are taken; the message lists all of them, by whom, and the fix.

    Args:
        message: What the operator reads.
        taken: Who holds which port, by the port's purpose.
    """

    def __init__(self, message: str, *, taken: Mapping[str, Listener] | None = None) -> None:
        super().__init__(message)
        self.taken = dict(taken or {})


def listener(port: int) -> Listener | None:
    """Return who listens on this TCP port of any local address, or None where nobody does."""
    return listeners([port]).get(port)


def listeners(ports: list[int]) -> dict[int, Listener]:
    """Return who listens on which of these TCP ports; free ports are left out."""
    wanted = set(ports)
    found: dict[int, Listener] = {}
    for connection in psutil.net_connections(kind="tcp"):
        port = connection.laddr.port if connection.laddr else 0
        if connection.status == psutil.CONN_LISTEN and port in wanted and (port not in found or connection.pid):
            found[port] = _describe(port, connection.pid)
    return found


def taken_by(ports: Mapping[str, int]) -> dict[str, tuple[Listener, str]]:
    """Return who holds which of the ports, given by the setting that moves them, and what to do about it."""
    held = listeners(list(ports.values()))
    return {purpose: (held[port], _fix(purpose, held[port])) for purpose, port in ports.items() if port in held}


def require_free(ports: Mapping[str, int]) -> None:
    """Check that nobody listens on any of these ports, given by the setting that moves them.

    Raises:
        PortsTaken: At least one is taken; all are listed.
    """
    taken = taken_by(ports)
    if taken:
        lines = [f"  {who.port} ({purpose}): {who}{fix}" for purpose, (who, fix) in taken.items()]
        held = {purpose: who for purpose, (who, _) in taken.items()}
        raise PortsTaken("\n".join(["these ports are taken:", *lines]), taken=held)


def _fix(purpose: str, who: Listener) -> str:
    if who.state is not None:
        return f"; started by Raycommend in {who.state}: run `raycommend down` there"
    return f"; stop it, or choose another port with `--set {purpose}=<port>`"


def _describe(port: int, pid: int | None) -> Listener:
    seen = processes.look(pid) if pid else None
    if pid is None or seen is None:
        return Listener(port, None, "", "", None)
    return Listener(port, pid, seen.name, processes.command_of(pid), processes.marker_of(pid))
