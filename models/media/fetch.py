"""Reads the files that items name, from where the settings allow and from nowhere else.

A catalog is written by others, so what it names is not trusted: a path must lie below one of the allowed folders after
every link is followed; a URL must name an allowed host, whose address is looked at before anything is sent to it, and
the connection goes to that very address (a name that changes its mind in between gains nothing). Redirects are not
followed, and one limit of time covers all of it. Called by the media encoders in offline workers; serving never
fetches anything.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, quote, urlsplit

from models.media.settings import MediaSettings
from models.media.wire import Address, Lookups, TimeLimit, Wire, connect, secured

_BLOCK = 1 << 16
_LONGEST = 4096


class MediaRefused(Exception):
    """A file was not read; the message says why, without its content."""


class MediaReader:
    """Reads one file at a time."""

    def __init__(self, settings: MediaSettings) -> None:
        self._settings = settings
        self._lookups = Lookups()
        self._roots = tuple(Path(root).expanduser().resolve() for root in settings.roots)
        self._hosts = frozenset(host.casefold().rstrip(".") for host in settings.hosts)

    def read(self, reference: str) -> bytes:
        """Return the bytes of a path or URL. Raises MediaRefused."""
        if len(reference) > _LONGEST or any(c < " " or c == "\x7f" for c in reference):
            raise MediaRefused("not a path or URL")
        scheme, separator, _ = reference.partition("://")
        if not separator:
            return self._file(reference)
        if scheme.lower() not in ("http", "https"):
            raise MediaRefused(f"{scheme}: only http and https URLs, and paths, are read")
        return self._url(reference)

    def _file(self, reference: str) -> bytes:
        try:
            path = self._inside(Path(reference))
            # A link or a pipe that took its place since then is not opened, or waited for.
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise MediaRefused("not a regular file")
                data = file.read(self._settings.max_bytes + 1)
        except (OSError, ValueError, RuntimeError) as error:
            raise MediaRefused(f"cannot be read ({type(error).__name__})") from error
        return self._of_size(data)

    def _inside(self, path: Path) -> Path:
        """Return the real path when it lies below a root; a relative one is looked for below each."""
        for candidate in [path] if path.is_absolute() else [root / path for root in self._roots]:
            real = candidate.resolve()
            for root in self._roots:
                if real.is_relative_to(root) and real.is_file():
                    return real
        raise MediaRefused("no such file below models.media.roots")

    def _url(self, reference: str) -> bytes:
        try:
            parts = urlsplit(reference)
            host, port = (parts.hostname or "").casefold().rstrip("."), parts.port
        except ValueError as error:
            raise MediaRefused("not a URL") from error
        if host not in self._hosts or parts.username is not None or parts.password is not None:
            raise MediaRefused("its host is not one of models.media.hosts")
        secure = parts.scheme.lower() == "https"
        port = port or (443 if secure else 80)
        limit = TimeLimit(self._settings.timeout_s)
        try:
            with connect(self._addresses(host, port, limit), limit) as plain:
                talk = secured(plain, host, limit) if secure else plain
                with talk:
                    return self._of_size(self._ask(Wire(talk, limit), parts, host))
        except TimeoutError as error:
            raise MediaRefused("took longer than models.media.timeout_s") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise MediaRefused(f"cannot be fetched ({type(error).__name__})") from error

    def _addresses(self, host: str, port: int, limit: TimeLimit) -> list[Address]:
        """Return the addresses of `host` to connect to; every one of them must be allowed."""
        found = self._lookups.addresses(host, port, limit)
        for _, where in found:
            address = ipaddress.ip_address(str(where[0]).partition("%")[0])
            mapped = getattr(address, "ipv4_mapped", None)
            public = (mapped or address).is_global and not address.is_multicast
            if not public and not self._settings.private_addresses:
                raise MediaRefused("its host has an address that is not public; see models.media.private_addresses")
        return found

    def _ask(self, wire: Wire, parts: SplitResult, host: str) -> bytes:
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/?%:@!$&'()*+,;=~-._")
        named = host if parts.port is None else f"{host}:{parts.port}"
        request = f"GET {target} HTTP/1.1\r\nHost: {named}\r\nConnection: close\r\nAccept-Encoding: identity\r\n\r\n"
        wire.send(request.encode("ascii"))
        # It reads by `makefile` and uses nothing else of a socket.
        answer = http.client.HTTPResponse(cast(socket.socket, wire), method="GET")
        answer.begin()
        if answer.status != 200:
            raise MediaRefused(f"the answer was {answer.status}; redirects are not followed")
        data = bytearray()
        while len(data) <= self._settings.max_bytes:
            part = answer.read1(_BLOCK)
            if not part:
                if answer.length:
                    raise MediaRefused("the answer ended in the middle")
                break
            data += part
        return bytes(data)

    def _of_size(self, data: bytes) -> bytes:
        if len(data) > self._settings.max_bytes:
            raise MediaRefused(f"larger than models.media.max_bytes = {self._settings.max_bytes}")
        return data
