"""Signed tokens: cursors that cannot be forged, and impressions that prove an item was shown.

HMAC-SHA256 truncated to 128 bits over a purpose, the tenant and whatever the token binds. Nothing secret is
inside a token. Called by the ingress only.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

import numpy as np
import numpy.typing as npt

_MAC_BYTES = 16
CURSOR_TTL_S = 600
IMPRESSION_TTL_S = 7 * 24 * 3600
MAX_PAGED_ITEMS = 1000


class TokenInvalid(Exception):
    """A token is malformed, forged, foreign or expired; the message says which kind of token."""


class Signer:
    """Signs and verifies with one key (≥ 16 bytes). Immutable; all replicas of the ingress share the key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError("the signing key must have at least 16 bytes")
        self._key = key

    def _mac(self, *parts: bytes) -> bytes:
        framed = b"".join(struct.pack("<I", len(p)) + p for p in parts)
        return hmac.new(self._key, framed, hashlib.sha256).digest()[:_MAC_BYTES]

    def cursor(self, tenant: str, owner: str, shown: npt.NDArray[np.uint64], *, now_s: int) -> str | None:
        """Return a token that remembers `shown` (hashes of all items of all pages so far), or None past the limit."""
        if len(shown) > MAX_PAGED_ITEMS:
            return None
        body = struct.pack("<I", now_s + CURSOR_TTL_S) + shown.astype("<u8").tobytes()
        return _encode(body + self._mac(b"cursor", tenant.encode(), owner.encode(), body))

    def open_cursor(self, token: str, tenant: str, owner: str, *, now_s: int) -> npt.NDArray[np.uint64]:
        """Return the hashes of items shown on earlier pages. Raises TokenInvalid."""
        raw = _decode(token, "cursor")
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        expected = self._mac(b"cursor", tenant.encode(), owner.encode(), body)
        if len(body) < 4 or (len(body) - 4) % 8 or not hmac.compare_digest(mac, expected):
            raise TokenInvalid("cursor is not one of ours for this user")
        if struct.unpack("<I", body[:4])[0] < now_s:
            raise TokenInvalid("cursor has expired; start again without one")
        return np.frombuffer(body[4:], dtype="<u8").astype(np.uint64)

    def impression(self, tenant: str, owner: str, item_id: str, rank: int, decision_id: str, *, now_s: int) -> str:
        """Return proof that `item_id` was shown to `owner` at `rank` by `decision_id`."""
        head = struct.pack("<IH", now_s + IMPRESSION_TTL_S, rank)
        return _encode(head + self._impression_mac(tenant, owner, item_id, decision_id, head))

    def check_impression(
        self, token: str, tenant: str, owner: str, item_id: str, decision_id: str, *, now_s: int
    ) -> int:
        """Return the rank at which the item was shown. Raises TokenInvalid."""
        raw = _decode(token, "impression")
        head, mac = raw[:6], raw[6:]
        expected = self._impression_mac(tenant, owner, item_id, decision_id, head)
        if not hmac.compare_digest(mac, expected):
            raise TokenInvalid("impression is not one of ours for this user, item and decision")
        expiry, rank = struct.unpack("<IH", head)
        if expiry < now_s:
            raise TokenInvalid("impression has expired")
        return int(rank)

    def _impression_mac(self, tenant: str, owner: str, item_id: str, decision_id: str, head: bytes) -> bytes:
        return self._mac(b"impression", tenant.encode(), owner.encode(), item_id.encode(), decision_id.encode(), head)


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(token: str, what: str) -> bytes:
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except (binascii.Error, ValueError) as error:
        raise TokenInvalid(f"{what} is malformed") from error
    if len(raw) <= _MAC_BYTES + 3:
        raise TokenInvalid(f"{what} is malformed")
    return raw
