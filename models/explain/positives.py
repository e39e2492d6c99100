"""A user's own positive recent items, prepared once per request, and what counts as positive.

What a sentence may cite of the user comes from here alone: items they took and did not turn away from, with
cleaned titles and attributes. Called by whoever builds evidence; knows nothing of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from models.catalog import REVIEWED, ItemCatalog
from models.events import EventType
from models.explain.clean import LABEL_CHARS, quotable_text
from models.features import UserFeatures

Kind = Literal["genre", "maker", "other", "aspect"]
"""What an attribute is. An `aspect` is what the item's reviews praise, and may be said in no other way."""

Taken = Literal["liked", "bought", "viewed", "chosen", "seed"]
"""What the user did with an item: a sentence must not say "liked" of what was only viewed.
`seed` is an item the application named in the request: nothing is claimed about the user."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("genre", "genres", "category", "categories", "topic", "topics", "subject", "subjects"), "genre"),
    **dict.fromkeys(
        ("brand", "brands", "author", "authors", "director", "directors", "artist", "artists", "maker", "manufacturer"),
        "maker",
    ),
    REVIEWED["praised"]: "aspect",
}
_UNSAID = frozenset(REVIEWED.values()) - {REVIEWED["praised"]}
_TAKEN: dict[int, Taken] = {
    EventType.view: "viewed",
    EventType.click: "viewed",
    EventType.like: "liked",
    EventType.rating: "liked",
    EventType.add_to_cart: "chosen",
    EventType.purchase: "bought",
}
_STRENGTH: dict[Taken, float] = {"seed": 1.5, "bought": 1.0, "liked": 1.0, "chosen": 0.8, "viewed": 0.5}


@dataclass(frozen=True, slots=True)
class EvidenceOptions:
    """What counts as a link. All thresholds are inclusive."""

    min_rating: float = 3.5
    """A rating below this (of 5) is not a like; the value of a rating event decides."""
    min_cosine: float = 0.65
    """Cosine of item embeddings from which two items are called close in meaning. With the default encoder over titles
    and genres, one random pair of films in fifty reaches it (0.5: one in five), so it must fit encoder and catalog."""
    min_link: float = 0.01
    """Co-visitation strength from which two items are called taken together."""
    max_liked: int = 3
    max_attributes: int = 3
    max_aspects: int = 2
    """How many praised aspects a record holds beside its other attributes."""
    recent_positives: int = 40
    """How many of the newest positive items are looked at."""
    popular_share: float = 0.05
    """An item is popular when its rank is in this share of the catalog."""
    trending_ranks: int = 50
    """An item is trending when its rank in the recent statistic is below this."""


DEFAULT_OPTIONS = EvidenceOptions()


class Attribute(NamedTuple):
    """One attribute value, cleaned. `kind` decides how a sentence may use it."""

    text: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Positive:
    """One of the user's own positive recent items, prepared once per request."""

    row: int
    title: str
    taken: Taken
    labels: tuple[Attribute, ...]
    weight: float


def attributes_of(catalog: ItemCatalog, row: int) -> tuple[Attribute, ...]:
    """Return the quotable closed-set attributes of an item, genres first, what reviews praise last.

    What reviews criticise or dispute is none: no sentence may hold it.
    """
    found = [
        Attribute(text, _KINDS.get(name.casefold(), "other"))
        for name, values in catalog.labels(row).items()
        if name not in _UNSAID
        for value in values
        if (text := quotable_text(value, limit=LABEL_CHARS))
    ]
    return tuple(dict.fromkeys(sorted(found, key=lambda a: ("genre", "maker", "other", "aspect").index(a.kind))))


def positives_of(
    features: UserFeatures,
    catalog: ItemCatalog,
    *,
    seed_rows: Sequence[int] = (),
    options: EvidenceOptions = DEFAULT_OPTIONS,
) -> list[Positive]:
    """Return the items that may be cited for this user, newest first; seeds before history.

    A dislike, a hide or a rating below `options.min_rating` takes the item out, unless a newer event is positive.
    """
    taken: dict[int, Taken | None] = {}
    for row in seed_rows:
        taken.setdefault(int(row), "seed")
    rows = catalog.rows(features.item_ids)
    closed = set(taken)  # rows of which older events no longer speak
    for at in range(len(features) - 1, -1, -1):
        row = int(rows[at])
        if row < 0 or row in closed:
            continue
        verdict = _verdict(int(features.types[at]), float(features.values[at]), options)
        if verdict is None:
            closed.add(row)
        if taken.get(row) in (None, "viewed"):  # of several positive events the strongest speaks
            taken[row] = verdict or taken.get(row)
    kept = [(row, t) for row, t in taken.items() if t is not None][: options.recent_positives]
    return [
        Positive(row, title, what, attributes_of(catalog, row), _STRENGTH[what] * 0.97**age)
        for age, (row, what) in enumerate(kept)
        if (title := quotable_text(catalog.title(row)))
    ]


def _verdict(event_type: int, value: float, options: EvidenceOptions) -> Taken | None:
    if event_type == EventType.rating and not value >= options.min_rating:
        return None
    return _TAKEN.get(event_type)
