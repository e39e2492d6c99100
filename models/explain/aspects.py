"""What reviews agree on about an item: the facts, the closed grammar of what may be said of them, and its checker.

An aspect is a word or two of the item's own reviews that several writers used. A model that reads short quotes says of
each whether it is praised, criticised or disputed, and can say only what counts and ratings allow. English reviews
only. Called by generators, by the batch job that judges aspects and by `build`; knows nothing of engines or files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from models.catalog import REVIEWED
from models.explain.clean import is_quotable, quotable_text
from models.explain.grammar import quote
from models.explain.opinions import Mention, may_be_aspect, mentions
from models.reviews import Review

Polarity = Literal["praised", "criticised", "disputed"]
LEAST_WRITERS = 3
"""So many different writers must praise an aspect, or blame it, before anything is said of it."""
ONE_SIDED = 3
"""So many times as many must praise as blame, or the other way round."""
RATED_FROM = 3.5
"""A mean rating below this speaks against praise, one of this or more against blame, as for events."""
MAX_ASPECTS, MAX_QUOTES, QUOTE_CHARS = 5, 2, 80
MAX_REVIEWS = 500
"""The newest reviews of an item that are read."""


@dataclass(frozen=True, slots=True)
class Aspect:
    """One aspect: how many writers mention, praise and blame it, the mean rating of who mentions it, and quotes."""

    text: str
    writers: int
    praised: int
    blamed: int
    rating: float | None = None
    quotes: tuple[str, ...] = ()

    @property
    def polarities(self) -> tuple[Polarity, ...]:
        """What may be said of it, strongest first; that it is disputed claims nothing and may always be."""
        if self.praised >= LEAST_WRITERS and self.praised >= ONE_SIDED * self.blamed:
            return ("disputed",) if self.rating is not None and self.rating < RATED_FROM else ("praised", "disputed")
        if self.blamed >= LEAST_WRITERS and self.blamed >= ONE_SIDED * self.praised:
            return (
                ("disputed",) if self.rating is not None and self.rating >= RATED_FROM else ("criticised", "disputed")
            )
        return ("disputed",)


Aspects = tuple[Aspect, ...]
Judged = Mapping[str, Polarity]
"""Polarity by aspect."""


def aspects_of(reviews: Sequence[Review]) -> Aspects:
    """Return the aspects of an item with these reviews, newest first: at most `MAX_ASPECTS`, most opinions first.

    A review that holds a link, markup or an instruction is not read, and equal texts count once.
    """
    said: dict[str, list[tuple[Review, Mention]]] = defaultdict(list)
    texts: set[str] = set()
    for review in reviews[:MAX_REVIEWS]:
        text = " ".join(review.text.casefold().split())
        if text in texts or not is_quotable(review.text):
            continue
        texts.add(text)
        for mention in mentions(review.text):
            said[mention.aspect].append((review, mention))
    found = [_aspect(text, rows) for text, rows in said.items()]
    kept = [a for a in found if a.praised + a.blamed >= LEAST_WRITERS]
    return tuple(sorted(kept, key=lambda a: (-(a.praised + a.blamed), -a.writers, a.text))[:MAX_ASPECTS])


def _aspect(text: str, rows: Sequence[tuple[Review, Mention]]) -> Aspect:
    opinions: dict[int, set[str]] = defaultdict(set)
    for review, mention in rows:
        opinions[review.writer] |= {mention.opinion} if mention.opinion else set()
    ratings = {id(review): review.rating for review, _ in rows if review.rating is not None}
    # One of each kind first, so that the model sees both sides where there are two.
    chosen = [next((m.clause for _, m in rows if m.opinion == wanted), "") for wanted in ("praise", "blame")]
    chosen += [m.clause for _, m in rows if m.opinion]
    quotes = dict.fromkeys(q for clause in chosen if (q := quotable_text(clause, limit=QUOTE_CHARS)))
    return Aspect(
        text,
        len(opinions),
        sum(said == {"praise"} for said in opinions.values()),
        sum(said == {"blame"} for said in opinions.values()),
        round(sum(ratings.values()) / len(ratings), 3) if ratings else None,
        tuple(quotes)[:MAX_QUOTES],
    )


def aspects_to_json(aspects: Aspects) -> str:
    """Return one line of JSON."""
    return json.dumps([asdict(a) for a in aspects], ensure_ascii=False, separators=(",", ":"))


def aspects_from_json(text: str) -> Aspects:
    """Read what `aspects_to_json` wrote."""
    return tuple(Aspect(**{**row, "quotes": tuple(row["quotes"])}) for row in json.loads(text))


def aspect_grammar(aspects: Aspects) -> str:
    """Return the EBNF of all verdicts that the facts allow. Raises ValueError where there is no aspect."""
    if not aspects:
        raise ValueError("nothing is known of what reviews say")
    parts = []
    for at, aspect in enumerate(aspects):
        allowed = " | ".join(quote(polarity) for polarity in aspect.polarities)
        parts.append(f"{quote(f'{chr(10) if at else str()}{aspect.text}: ')} ({allowed})")
    return "root ::= " + " ".join(parts) + "\n"


def template_verdict(aspects: Aspects) -> str:
    """Return what the counts say, without a model; "" where there is no aspect."""
    return "\n".join(f"{aspect.text}: {aspect.polarities[0]}" for aspect in aspects)


def check_verdict(text: str, aspects: Aspects) -> Judged | None:
    """Return the polarity of every aspect, or None where `text` is no verdict on exactly these, each as it may be.

    Knows nothing of the grammar: a line is an aspect, a colon and one of three words.
    """
    facts = {aspect.text: aspect for aspect in aspects}
    judged: dict[str, Polarity] = {}
    for line in text.split("\n"):
        name, _, word = line.partition(": ")
        polarity = next((p for p in get_args(Polarity) if p == word), None)
        if polarity is None or name not in facts or name in judged or not _holds(facts[name], polarity):
            return None
        judged[name] = polarity
    return judged if judged.keys() == facts.keys() else None


def _holds(aspect: Aspect, polarity: Polarity) -> bool:
    """Whether counts and ratings back a polarity; apart from `Aspect.polarities`, which the grammar is made of."""
    if polarity not in REVIEWED or not all(may_be_aspect(word) for word in aspect.text.split(" ")):
        return False
    if aspect.writers < LEAST_WRITERS:
        return False
    if polarity == "disputed":
        return True
    for_it, against = aspect.praised, aspect.blamed
    rated_so = aspect.rating is None or aspect.rating >= RATED_FROM
    if polarity == "criticised":
        for_it, against = against, for_it
        rated_so = aspect.rating is None or not rated_so
    return rated_so and for_it >= LEAST_WRITERS and against * ONE_SIDED <= for_it


def review_labels(judged: Judged, reviews: Sequence[Review]) -> dict[str, tuple[str, ...]]:
    """Return what an item's reviews say as catalog labels; what these reviews no longer back is left out."""
    facts = {aspect.text: aspect for aspect in aspects_of(reviews)}
    found: dict[str, list[str]] = defaultdict(list)
    for text, aspect in facts.items():
        polarity = judged.get(text)
        if polarity is not None and _holds(aspect, polarity):
            found[REVIEWED[polarity]].append(text)
    return {name: tuple(texts) for name, texts in found.items()}
