"""A small S3 server: signatures (version 4) are checked, listings come in pages, objects in ranges. Read only."""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

KEY_ID, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
PAGE = 1000
"""Objects in one page of a listing at most, as with Amazon's."""


@dataclass
class S3:
    """Buckets by name, objects in them by key, and what was asked for."""

    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}


@pytest.fixture
def s3() -> Iterator[S3]:
    state = S3()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"s3": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


class _Handler(BaseHTTPRequestHandler):
    s3: S3
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        asked = urlsplit(self.path)
        bucket, _, key = unquote(asked.path).lstrip("/").partition("/")
        query = dict(parse_qsl(asked.query, keep_blank_values=True))
        self.s3.asked.append(f"{self.command} {self.path}")
        if (denied := _denied(self, asked.path, query)) is not None:
            self._refuse(403, denied)
        elif bucket not in self.s3.buckets:
            self._refuse(404, "NoSuchBucket")
        elif not key:
            self._send(200, _listing(bucket, self.s3.buckets[bucket], query) if self.command == "GET" else b"")
        elif key not in self.s3.buckets[bucket]:
            self._refuse(404, "NoSuchKey")
        else:
            self._object(self.s3.buckets[bucket][key])

    def _object(self, content: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self._send(200, content)
            return
        self.s3.ranges.append(self.headers["Range"])
        first, last = int(wanted[1]), min(int(wanted[2]), len(content) - 1)
        self._send(206, content[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        given = {"Content-Length": str(len(body)), "Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT", **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _listing(bucket: str, objects: dict[str, bytes], query: dict[str, str]) -> bytes:
    """ListObjectsV2: sorted, keys and common prefixes counted together, `PAGE` at a time."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    entries: dict[str, int | None] = {}
    for key in sorted(objects):
        if key.startswith(prefix):
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            entries[prefix + head + found if found else key] = None if found else len(objects[key])
    after = query.get("continuation-token", "")
    left = [(name, size) for name, size in sorted(entries.items()) if name > after]
    page = left[: min(PAGE, int(query.get("max-keys", PAGE)))]
    parts = [_entry(name, size) for name, size in page]
    more = len(page) < len(left)
    token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}</ListBucketResult>"
    ).encode()


def _entry(name: str, size: int | None) -> str:
    if size is None:
        return f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
    when = "<LastModified>2026-11-24T10:00:00Z</LastModified>"
    return f"<Contents><Key>{escape(name)}</Key>{when}<Size>{size}</Size></Contents>"


def _denied(request: BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> str | None:
    """Why a request is refused; None for one that is signed with our key (AWS Signature Version 4)."""
    pattern = r"AWS4-HMAC-SHA256 Credential=([^/]+)/([^,]+), SignedHeaders=([^,]+), Signature=(\w+)"
    given = re.fullmatch(pattern, request.headers.get("Authorization", ""))
    if given is None:
        return "AccessDenied"
    who, scope, names, signature = given.groups()
    if who != KEY_ID:
        return "InvalidAccessKeyId"
    arguments = "&".join(f"{quote(n, safe='-_.~')}={quote(v, safe='-_.~')}" for n, v in sorted(query.items()))
    headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in names.split(";"))
    body = request.headers["x-amz-content-sha256"]
    canonical = "\n".join([request.command, path, arguments, headers, names, body])
    text = "\n".join(
        ["AWS4-HMAC-SHA256", request.headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return (
        None
        if hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), signature)
        else "SignatureDoesNotMatch"
    )
