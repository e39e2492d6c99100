"""A taken port is named with who holds it, for all ports at once."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.ports import PortsTaken, listener, require_free
from cluster.processes import MARKER


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[int]:
    with socket.socket() as server:
        server.bind((host, 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_free_port_has_no_listener() -> None:
    with listening() as port:
        pass
    assert listener(port) is None
    require_free({"cluster.http_port": port})


def test_a_listener_is_named_with_pid_and_command() -> None:
    with listening() as port:
        who = listener(port)
    assert who is not None
    assert who.pid == os.getpid()
    assert who.command
    assert len(who.command) <= 100


def test_every_taken_port_is_listed_with_the_setting_that_moves_it() -> None:
    with listening() as one, listening("0.0.0.0") as two, pytest.raises(PortsTaken) as caught:
        require_free({"cluster.http_port": one, "cluster.haproxy.stats_port": two})
    message = str(caught.value)
    assert f"{one} (cluster.http_port)" in message
    assert f"{two} (cluster.haproxy.stats_port)" in message
    assert f"pid {os.getpid()}" in message
    assert "--set cluster.haproxy.stats_port=<port>" in message
    assert caught.value.taken["cluster.http_port"].port == one


def test_our_own_listener_is_answered_with_down() -> None:
    code = (
        "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen();"
        "print(s.getsockname()[1], flush=True); time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, MARKER: "/srv/state"}
    )
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with pytest.raises(PortsTaken, match=r"started by Raycommend in /srv/state: run `raycommend down` there"):
            require_free({"cluster.http_port": port})
    finally:
        child.kill()
        child.communicate()


def test_a_port_with_only_closing_connections_is_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)
            assert client.recv(1) == b""
    # The side that closed first keeps the port in TIME_WAIT for a minute; the next start may use it all the same.
    assert listener(port) is None
