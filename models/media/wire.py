"""One connection to a stranger, with one limit of time over all of it.

A socket's own time-out starts anew with every byte, and a name lookup has none at all, so a slow or hostile server
could hold a job for hours. Here every step is given what is left: looking the name up, connecting, the TLS handshake,
each write and each read. Called by the media reader; knows nothing of what may be read.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

Address = tuple[socket.AddressFamily, tuple[Any, ...]]
"""A family and what `socket.connect` takes for it; the first element of the latter is the address as text."""


class TimeLimit:
    """A moment that everything must be over by."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError when there are none."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Lookups:
    """Name lookups that can be waited for with a limit.

    The system's lookup cannot be stopped, so one that takes too long goes on in its thread, and whoever asks for the
    same name meanwhile waits for that one: there is at most one thread per name and port.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], Future[list[Address]]] = {}

    def addresses(self, host: str, port: int, limit: TimeLimit) -> list[Address]:
        """Return the addresses of `host` in the order of the system's preference. Raises OSError, TimeoutError."""
        key = (host, port)
        running = self._last.get(key)
        if running is None or running.done():
            running = self._last[key] = Future()
            threading.Thread(target=_look_up, args=(host, port, running), name="media-lookup", daemon=True).start()
        return running.result(limit.left())


def _look_up(host: str, port: int, found: Future[list[Address]]) -> None:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        found.set_result(list(dict.fromkeys((info[0], info[4]) for info in infos)))
    except Exception as error:
        found.set_exception(error)


def connect(addresses: Sequence[Address], limit: TimeLimit) -> socket.socket:
    """Return a connection to the first of `addresses` that takes one; no name is looked up. Raises OSError.

    Each has its share of the time that is left, so that a silent one does not use up that of the next.
    """
    failed: OSError = OSError("no address")
    for at, (family, address) in enumerate(addresses):
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(limit.left() / (len(addresses) - at))
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            failed = error
    raise failed


def secured(plain: socket.socket, host: str, limit: TimeLimit) -> ssl.SSLSocket:
    """Return `plain` behind TLS, the certificate checked against `host`. Raises OSError."""
    talk = ssl.create_default_context().wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    try:
        talk.settimeout(limit.left())  # which counts for the whole handshake
        talk.do_handshake()
    except BaseException:
        talk.close()
        raise
    return talk


class Wire:
    """A connection whose reads and writes share one limit; `http.client.HTTPResponse` takes it for a socket."""

    def __init__(self, talk: socket.socket, limit: TimeLimit) -> None:
        self._talk, self._limit = talk, limit

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises OSError."""
        while data:
            self._talk.settimeout(self._limit.left())
            data = data[self._talk.send(data) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return what comes from the other side; only for reading bytes."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self._talk, self._limit))


class _Reader(io.RawIOBase):
    def __init__(self, talk: socket.socket, limit: TimeLimit) -> None:
        self._talk, self._limit = talk, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Set before each read: a server that sends a byte now and then does not get more time.
        self._talk.settimeout(self._limit.left())
        return self._talk.recv_into(buffer)
