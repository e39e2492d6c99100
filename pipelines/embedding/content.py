"""Content hashes: which items have the same text as before, without keeping the text.

128 bits per item, as two uint64. Called by the embedding job; knows nothing of encoders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog

Contents = npt.NDArray[np.uint64]
"""uint64[items, 2]: the hash of each item's document."""
CONTENT_FILE = "content.npy"
"""The contents of an embeddings artifact, row by row beside its vectors."""
_ROWS = 8192


def contents_of(documents: Sequence[str]) -> Contents:
    """Return the hashes of `documents`."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in documents)
    return np.frombuffer(digests, "<u8").reshape(len(documents), 2).astype(np.uint64)


def catalog_contents(catalog: ItemCatalog, media: Sequence[str] = ()) -> Contents:
    """Return the hashes of all documents of `catalog`, a few thousand texts in memory at a time.

    With `media`, names of modalities, they change with the path or URL of an item's picture or sound as well.
    """
    parts = []
    for start in range(0, len(catalog), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(catalog)), dtype=np.int32)
        documents = catalog.documents(rows)
        for name in media:
            named = catalog.media(name, rows)
            documents = [f"{d}\0{name} {r}" if r else d for d, r in zip(documents, named, strict=True)]
        parts.append(contents_of(documents))
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


class ContentTable:
    """Finds rows by content. Equal contents: the first row wins."""

    def __init__(self, contents: Contents) -> None:
        self._order = np.lexsort((np.arange(len(contents)), contents[:, 1], contents[:, 0]))
        self._sorted = contents[self._order]

    def rows(self, wanted: Contents) -> npt.NDArray[np.int64]:
        """Return int64[wanted]: the row of each content, -1 where there is none."""
        if not len(self._sorted):
            return np.full(len(wanted), -1, np.int64)
        at = np.minimum(np.searchsorted(self._sorted[:, 0], wanted[:, 0]), len(self._sorted) - 1)
        # Two contents that share the first half and not the second are as good as impossible; they count as new.
        same = (self._sorted[at] == wanted).all(axis=1)
        return np.where(same, self._order[at], -1)
