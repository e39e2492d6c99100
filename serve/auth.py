"""Credentials: which tenant a request belongs to. The tenant comes from the credential and from nowhere else.

Keys are compared by digest in constant time. Without any key configured, everyone is tenant `main`; the
settings allow that on loopback only.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from models.ids import is_valid_id
from serve.errors import ConfigError, Unauthorised

DEFAULT_TENANT = "main"


class Keys:
    """API keys by tenant."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        """`keys` maps key → tenant."""
        self._by_digest = [(hashlib.sha256(k.encode()).digest(), t) for k, t in keys.items()]

    @classmethod
    def parse(cls, text: str) -> Keys:
        """Read `tenant=key,tenant=key`. Raises ConfigError without ever quoting a key."""
        keys: dict[str, str] = {}
        for number, part in enumerate(filter(None, (p.strip() for p in text.split(","))), start=1):
            tenant, _, key = part.partition("=")
            if not is_valid_id(tenant) or len(key) < 16:
                raise ConfigError(f"API key {number}: want tenant=key with a key of at least 16 characters")
            keys[key] = tenant
        return cls(keys)

    @property
    def tenants(self) -> tuple[str, ...]:
        """All tenants that have a key, or the default one."""
        return tuple(sorted({t for _, t in self._by_digest})) or (DEFAULT_TENANT,)

    def tenant_of(self, authorization: str | None, api_key: str | None) -> str:
        """Return the tenant of a credential. Raises Unauthorised."""
        if not self._by_digest:
            return DEFAULT_TENANT
        given = api_key
        if authorization is not None and authorization.lower().startswith("bearer "):
            given = authorization[7:].strip()
        if not given:
            raise Unauthorised("send Authorization: Bearer … or X-Api-Key")
        digest = hashlib.sha256(given.encode()).digest()
        found = [tenant for known, tenant in self._by_digest if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorised("the key is not known")
        return found[0]
