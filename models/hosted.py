"""One index whose pieces lie with several processes ("hosts"): scattered to and gathered here, with filters intact.

A host has the rows of its own pieces in memory (`HostShare`), a searcher asks all of them (`HostedIndex`). What holds
for pieces in one process holds here too: the same pieces give the same rows. How a question travels is the business
of whoever implements `AskHosts`; a host without an answer is left out, and its asker notes that. Called by
`models.bundle`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.index import INDEX_FILE, FlatIndex, load_piece
from models.index_port import EXACT_BELOW, Hits, Mask, VectorIndex, Vectors
from models.shards import Shard, merged, read_shards, search_pieces


@dataclass(frozen=True, slots=True)
class PackedMask:
    """A mask as it travels: the rows it forbids where they are few, else a bit a row."""

    size: int
    forbidden: npt.NDArray[np.int32] | None
    bits: npt.NDArray[np.uint8] | None

    def mask(self) -> Mask:
        """Return the mask, bool[size]."""
        if self.bits is not None:
            return np.unpackbits(self.bits, count=self.size).astype(bool)
        mask = np.ones(self.size, bool)
        mask[self.forbidden] = False
        return mask


def packed(mask: Mask) -> PackedMask | None:
    """Return what travels for `mask`: None where it allows every row."""
    forbidden = np.flatnonzero(~mask)
    if not len(forbidden):
        return None
    if 32 * len(forbidden) <= len(mask):
        return PackedMask(len(mask), forbidden.astype(np.int32), None)
    return PackedMask(len(mask), None, np.packbits(mask))


@dataclass(frozen=True, slots=True)
class ShardQuestion:
    """What one host is asked: the `n` rows nearest to `query` float32[dim], among the `allowed` of its own rows."""

    query: Vectors
    n: int
    allowed: PackedMask | None


AskHosts = Callable[[str, Mapping[int, ShardQuestion]], Mapping[int, Hits]]
"""Asks hosts, by number, about their share of a release, by id; blocks until all answered or their time is up."""


@dataclass(frozen=True)
class Spread:
    """How the pieces of an index are spread: over how many hosts, and what this process is among them."""

    hosts: int
    ask: AskHosts | None = None
    """Asks the hosts; None in a host."""
    own: int = 0
    """Number of this host."""


def shares(shards: Sequence[Shard], hosts: int) -> list[Sequence[Shard]]:
    """Deal pieces out in order, to each host about as many as to any other; some get none where pieces are fewer."""
    bounds = [len(shards) * n // hosts for n in range(hosts + 1)]
    return [shards[bounds[n] : bounds[n + 1]] for n in range(hosts)]


def pieces_in(folder: Path, rows: int) -> list[Shard]:
    """Return the pieces of the index in `folder`: one where it was built whole. Raises ValueError when damaged."""
    return read_shards(folder, rows) or [Shard(INDEX_FILE, 0, rows)]


class HostShare:
    """The pieces that one host holds, in its memory."""

    def __init__(self, pieces: Sequence[tuple[int, int, VectorIndex]]) -> None:
        """`pieces` are (first row, row after the last, index of those rows), one after the other; none is allowed."""
        self._pieces, self._first = pieces, pieces[0][0] if pieces else 0

    def answer(self, question: ShardQuestion) -> Hits:
        """Return rows of the whole catalog with their scores, best first, ties by row."""
        allowed = None if question.allowed is None else question.allowed.mask()
        return search_pieces(self._pieces, question.query, question.n, allowed, first=self._first)


class HostedIndex:
    """A `VectorIndex` whose pieces lie with hosts. Rare filters are answered here, exactly, from the mapped vectors."""

    def __init__(self, release_id: str, spans: Sequence[tuple[int, int]], ask: AskHosts, *, exact: VectorIndex) -> None:
        """`spans` are (first row, row after the last) by number of the host; `exact` searches all rows."""
        self._release_id, self._ask, self._exact = release_id, ask, exact
        self._spans = {host: span for host, span in enumerate(spans) if span[0] < span[1]}
        self._rows = max((stop for _, stop in self._spans.values()), default=0)

    def search(self, query: Vectors, n: int, *, allowed: Mask | None = None) -> Hits:
        """See `VectorIndex.search`; rows of hosts that gave no answer are missing."""
        usable = self._rows if allowed is None else int(np.count_nonzero(allowed))
        if n <= 0 or usable < EXACT_BELOW * self._rows or not usable:
            return self._exact.search(query, max(0, n), allowed=allowed)
        query = np.asarray(query, np.float32)
        questions = {}
        for host, (start, stop) in self._spans.items():
            part = None if allowed is None else allowed[start:stop]
            if part is None or part.any():
                questions[host] = ShardQuestion(query, n, None if part is None else packed(part))
        return merged(self._ask(self._release_id, questions).values(), n)


def load_share(folder: Path, vectors: Vectors, spread: Spread | None) -> HostShare:
    """Load what this host holds of the index in `folder`. Raises ValueError when it does not fit `vectors`."""
    if spread is None or spread.ask is not None:
        raise ValueError("this process holds no share of an index for others")
    own = shares(pieces_in(folder, len(vectors)), spread.hosts)[spread.own]
    return HostShare([(s.start, s.stop, load_piece(folder, s, vectors, n)) for n, s in enumerate(own)])


def hosted_index(folder: Path, vectors: Vectors, release_id: str, spread: Spread) -> HostedIndex:
    """Return the index of a release that hosts hold; nothing of it is loaded here. Raises ValueError when damaged."""
    if spread.ask is None:
        raise ValueError("a host does not search what other hosts hold")
    dealt = shares(pieces_in(folder, len(vectors)), spread.hosts)
    spans = [(s[0].start, s[-1].stop) if s else (0, 0) for s in dealt]
    return HostedIndex(release_id, spans, spread.ask, exact=FlatIndex(vectors))
