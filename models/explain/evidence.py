"""Evidence: what is true about one item for one user, and nothing else.

`build_evidence` is a pure function of the user's own recent events, the candidate and the pinned release. Every
reason, whoever writes it, may use only what the record holds: it has titles, attributes and claims, no ids, no raw
user text and no other user's data. Called by serving and by the batch job; knows nothing of prompts or engines.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.candidates import SCORED_SOURCES, Source, source_names
from models.catalog import ItemCatalog
from models.explain.clean import quotable_text
from models.explain.positives import DEFAULT_OPTIONS, Attribute, EvidenceOptions, Positive, Taken, attributes_of

How = Literal["co_visited", "shared", "meaning"]
Claim = Literal["popular", "trending", "new", "again"]

Link = Callable[[int, int], float]
"""`link(row_a, row_b)`: how strongly people who took `row_a` go on to take `row_b`; 0 means not at all."""

Ranks = Callable[[int], int | None]
"""Rank of an item in a statistic, 0 for the first, None where the statistic does not hold it."""


@dataclass(frozen=True, slots=True)
class Liked:
    """One of the user's own items that links to the candidate: what they did with it and how it links."""

    title: str
    taken: Taken
    how: tuple[How, ...]
    shared: tuple[Attribute, ...]
    cosine: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """What may be said about one item. An empty record is legal and claims nothing.

    `item` is "" when the title must not be quoted. `liked` is in order of strength. `attributes` are the item's own.
    """

    item: str = ""
    liked: tuple[Liked, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    year: int | None = None
    source: str | None = None
    claims: tuple[Claim, ...] = ()
    item_version: str = ""
    """Digest of the item as the catalog holds it: part of cache keys, never said and not part of the evidence hash."""
    weighed: str | None = None
    """The fusion feature that raised the item's score most: shown beside the reason, never said, not in the hash."""

    @property
    def shared(self) -> tuple[Attribute, ...]:
        """Attributes that the item has in common with at least one liked item, strongest first."""
        return tuple(dict.fromkeys(a for liked in self.liked for a in liked.shared))

    @property
    def praised(self) -> tuple[Attribute, ...]:
        """What the item's reviews praise, most praised first."""
        return tuple(a for a in self.attributes if a.kind == "aspect")

    def to_dict(self) -> dict[str, Any]:
        """Return the record as the public API shows it."""
        return {
            "liked": [i.title for i in self.liked if i.taken in ("liked", "bought", "chosen")],
            "viewed": [i.title for i in self.liked if i.taken == "viewed"],
            "shared": [a.text for a in self.shared if a.kind != "aspect"],
            "praised": [a.text for a in self.praised],
            "year": self.year,
            "source": self.source,
            "weighed": self.weighed,
            "popular": "popular" in self.claims,
            "trending": "trending" in self.claims,
        }


EMPTY = Evidence()


def evidence_hash(evidence: Evidence) -> str:
    """Return 32 hex digits that change whenever anything sayable changes; equal in every process."""
    body = asdict(evidence)
    del body["weighed"]
    del body["item_version"]  # a new description changes no sentence; cache keys hold the version beside this hash
    body["liked"] = [{**i, "cosine": None} for i in body["liked"]]  # a rounding error must not miss the cache
    text = json.dumps(body, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build_evidence(
    positives: Sequence[Positive],
    row: int,
    *,
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32] | None = None,
    text_dimension: int | None = None,
    link: Link | None = None,
    sources: int = 0,
    source_scores: npt.NDArray[np.float32] | None = None,
    popularity_rank: Ranks | None = None,
    trending_rank: Ranks | None = None,
    options: EvidenceOptions = DEFAULT_OPTIONS,
) -> Evidence:
    """Return the record of one candidate.

    Args:
        positives: what `positives_of` returned for this request; empty for a cold user.
        row: catalog row of the candidate.
        catalog: the catalog of the pinned release.
        embeddings: float32[items, dim] (any norm); rows beyond its end have no meaning link.
        text_dimension: columns of `embeddings`, from the first, that the text decides; None for all of them. Alike
            pictures are no reason to speak of meaning.
        link: item-to-item strength, see `Link`.
        sources: bits of `Source` that found the candidate.
        source_scores: float32[len(SCORED_SOURCES)], the candidate's row of `Candidates.source_scores`.
        popularity_rank: rank over all time; `popular` is claimed only from it.
        trending_rank: rank in the recent window; `trending` is claimed only from it.
        options: thresholds.
    """
    every, title = attributes_of(catalog, row), quotable_text(catalog.title(row))
    own = tuple(a for a in every if a.kind != "aspect")
    praised = tuple(a for a in every if a.kind == "aspect")[: options.max_aspects]
    cosines = _cosines(embeddings, row, [p.row for p in positives], text_dimension)
    visits = [link(p.row, row) if link is not None and p.row != row else 0.0 for p in positives]
    most = max((v for v in visits if v >= options.min_link), default=0.0)
    strengths = [
        # A catalog may hold one title twice: "similar to Heat" says nothing about Heat.
        _strength(p, own, visits[at], most, float(cosines[at]), options) if p.row != row and p.title != title else 0.0
        for at, p in enumerate(positives)
    ]
    best = sorted((at for at, s in enumerate(strengths) if s > 0), key=lambda at: -strengths[at])[: options.max_liked]
    year = catalog.numbers(row).get("year")
    return Evidence(
        item=title,
        liked=tuple(_liked(positives[at], own, praised, visits[at], float(cosines[at]), options) for at in best),
        attributes=own[: options.max_attributes] + praised,
        year=int(year) if year is not None and 0 < year < 3000 else None,
        source=_strongest(sources, source_scores),
        claims=_claims(positives, row, len(catalog), sources, popularity_rank, trending_rank, options),
        item_version=catalog.version(row),
    )


def _strength(
    positive: Positive,
    own: tuple[Attribute, ...],
    visited: float,
    most: float,
    cosine: float,
    options: EvidenceOptions,
) -> float:
    """Return how well an item explains the candidate; 0 when nothing links them."""
    strength = visited / most if visited >= options.min_link and visited > 0 else 0.0
    shared = sum(a in positive.labels for a in own)
    if shared:  # out of all that either has: two of two genres say more than two of six
        strength += shared / len({*own, *(a for a in positive.labels if a.kind != "aspect")})
    if cosine >= options.min_cosine:
        strength += max(cosine, 1e-6)
    return strength * positive.weight


def _liked(
    positive: Positive,
    own: tuple[Attribute, ...],
    praised: tuple[Attribute, ...],
    visited: float,
    cosine: float,
    options: EvidenceOptions,
) -> Liked:
    shared = tuple(a for a in own if a in positive.labels)[: options.max_attributes]
    how: list[How] = []
    if visited >= options.min_link and visited > 0:
        how.append("co_visited")
    if shared:
        how.append("shared")
    if cosine >= options.min_cosine:
        how.append("meaning")
    # Praise for the same is no link by itself: it may be said of what is linked anyway.
    shared += tuple(a for a in praised if a in positive.labels)
    return Liked(positive.title, positive.taken, tuple(how), shared, round(cosine, 3))


def _cosines(
    embeddings: npt.NDArray[np.float32] | None, row: int, rows: Sequence[int], columns: int | None
) -> npt.NDArray[np.float32]:
    out = np.zeros(len(rows), np.float32)
    if embeddings is None or row >= len(embeddings):
        return out
    known = np.array([at for at, r in enumerate(rows) if r < len(embeddings)], np.int64)
    if len(known):
        vectors, own = embeddings[np.asarray(rows)[known]][:, :columns], embeddings[row][:columns]
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(own)
        out[known] = (vectors @ own) / np.maximum(norms, 1e-9)
    return np.nan_to_num(out)


def _strongest(sources: int, scores: npt.NDArray[np.float32] | None) -> str | None:
    names = source_names(sources)
    if scores is None or len(names) < 2:
        return names[0] if names else None
    scored = [(float(scores[at]), -at, str(s.name)) for at, s in enumerate(SCORED_SOURCES) if sources & s]
    return max(scored)[2] if scored else names[0]


def _claims(
    positives: Sequence[Positive],
    row: int,
    items: int,
    sources: int,
    popularity_rank: Ranks | None,
    trending_rank: Ranks | None,
    options: EvidenceOptions,
) -> tuple[Claim, ...]:
    out: list[Claim] = []
    popular = popularity_rank(row) if popularity_rank is not None else None
    trending = trending_rank(row) if trending_rank is not None else None
    if any(p.row == row and p.taken == "bought" for p in positives):
        out.append("again")
    if trending is not None and trending < options.trending_ranks:
        out.append("trending")
    if popular is not None and popular < max(1, int(items * options.popular_share)):
        out.append("popular")
    if sources & Source.fresh:
        out.append("new")
    return tuple(out)
