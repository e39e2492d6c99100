"""Identifiers: what is a valid id, which bucket a user lives in, how ids are hashed and ordered.

Called by every layer. Knows nothing of stores or requests.
"""

import hashlib
import re
import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

ID_PATTERN = r"^[A-Za-z0-9._:~-]{1,128}$"
_ID = re.compile(ID_PATTERN.replace("$", r"\Z"))
BUCKETS = 256


def is_valid_id(text: str) -> bool:
    """Whether `text` may be used as a user, item, session, event or tenant id."""
    return _ID.match(text) is not None


def bucket_of(user_id: str, *, buckets: int = BUCKETS) -> int:
    """Return the bucket of a user, `crc32(user id) mod buckets`; fixed for the life of a store."""
    return zlib.crc32(user_id.encode()) % buckets


def hash64(item_id: str) -> int:
    """Return the 64-bit hash under which an item id is kept in a user's seen set."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "little")


def hash64_array(item_ids: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Hash many item ids; same order as given."""
    return np.fromiter((hash64(i) for i in item_ids), dtype=np.uint64)
