"""One limit of time covers a fetch from the name lookup to the last byte, against real servers that take their time."""

import contextlib
import socket
import threading
import time

import pytest

from models.media.fetch import MediaReader, MediaRefused
from models.media.settings import MediaSettings

LIMIT_S = 0.5
"""Each drip below lasts ten seconds or longer, a byte every 20 ms: far below any time-out of a single read."""


@pytest.fixture
def dripping():
    """Return a function that serves one byte string, a byte at a time; its result is the port."""
    stop, threads = threading.Event(), []

    def serve(first: bytes, drip: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(5)  # who never comes

        def answer() -> None:
            with listener, contextlib.suppress(OSError):
                talk, _ = listener.accept()
                with talk:
                    talk.sendall(first)
                    for byte in drip:
                        if stop.wait(0.02):
                            return
                        talk.sendall(bytes([byte]))

        threads.append(threading.Thread(target=answer))
        threads[-1].start()
        return int(listener.getsockname()[1])

    yield serve
    stop.set()
    for thread in threads:
        thread.join()


def reader() -> MediaReader:
    return MediaReader(MediaSettings(hosts=("localhost", "127.0.0.1"), private_addresses=True, timeout_s=LIMIT_S))


def refused_in_time(url: str, of: MediaReader | None = None) -> None:
    began = time.monotonic()
    with pytest.raises(MediaRefused, match=r"longer than models\.media\.timeout_s"):
        (of or reader()).read(url)
    assert time.monotonic() - began < 4 * LIMIT_S


def test_headers_that_drip_do_not_get_more_time(dripping) -> None:
    port = dripping(b"HTTP/1.1 200 OK\r\n", b"X-Padding: " + b"x" * 500 + b"\r\n\r\n")
    refused_in_time(f"http://127.0.0.1:{port}/")


def test_a_status_line_that_drips_does_not_get_more_time(dripping) -> None:
    refused_in_time(f"http://127.0.0.1:{dripping(b'', b'HTTP/1.1 200 ' + b'O' * 500)}/")


def test_a_body_that_drips_does_not_get_more_time(dripping) -> None:
    port = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", b"x" * 500)
    refused_in_time(f"http://127.0.0.1:{port}/")


def test_chunks_that_drip_do_not_get_more_time(dripping) -> None:
    port = dripping(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 100)
    refused_in_time(f"http://127.0.0.1:{port}/")


def test_a_tls_handshake_that_is_never_answered_ends_in_time(dripping) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system takes the connection, nobody answers
        refused_in_time(f"https://127.0.0.1:{silent.getsockname()[1]}/")


def test_a_tls_handshake_that_drips_does_not_get_more_time(dripping) -> None:
    record = b"\x16\x03\x03\x02\x00" + b"\x02\x00\x01\xfc" + b"\x03\x03" + b"x" * 506  # a server hello without end
    refused_in_time(f"https://127.0.0.1:{dripping(b'', record)}/")


def test_a_name_lookup_that_hangs_ends_in_time_and_is_not_started_again(monkeypatch) -> None:
    asked, over = [], threading.Event()

    def hanging(*what, **_):
        asked.append(what)
        over.wait(30)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    try:
        one = reader()
        refused_in_time("http://localhost/a", one)
        refused_in_time("http://localhost/b", one)
        assert len(asked) == 1
    finally:
        over.set()


def test_the_parts_share_one_limit(monkeypatch) -> None:
    looked_up = socket.getaddrinfo

    def slow(*what, **more):
        time.sleep(0.8 * LIMIT_S)
        return looked_up(*what, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(MediaRefused, match="longer than"):
            reader().read(f"https://127.0.0.1:{silent.getsockname()[1]}/")
        # Half of it once more would be 1.3 times, a limit of its own for each part 1.8 times or more.
        assert time.monotonic() - began < 1.6 * LIMIT_S


def test_the_connection_goes_to_the_address_that_was_checked_whatever_the_name_says_next(dripping, monkeypatch) -> None:
    port = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"")
    answers = iter(["127.0.0.1", "127.0.0.2", "10.0.0.1"])
    asked = []

    def changing(host, *_, **__):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    settings = MediaSettings(hosts=("cdn.example.org",), private_addresses=True, timeout_s=5)
    assert MediaReader(settings).read("http://cdn.example.org/x") == b"hi"
    assert asked == ["cdn.example.org"]


def test_an_address_that_refuses_is_followed_by_the_next(dripping, monkeypatch) -> None:
    port = dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"")
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert (
        MediaReader(MediaSettings(hosts=("two.example",), private_addresses=True)).read("http://two.example/") == b"hi"
    )
