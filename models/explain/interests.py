"""What a user is interested in, in two sentences: the facts, the closed grammar of what may be said, and its checker.

As for reasons, nothing can be said that the user's own events and the catalog do not back: genres the user takes more
often than the catalog offers them, and titles the user liked lately. English only. Called by generators and by the
batch job that writes summaries; knows nothing of engines, stores or Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, product

from models.catalog import ItemCatalog
from models.explain import frames_en
from models.explain.checker import check_reason
from models.explain.evidence import Evidence, Liked
from models.explain.frames import drawn
from models.explain.grammar import quote
from models.explain.positives import Attribute, Positive, Taken, attributes_of

MAX_GENRES, MAX_TITLES = 3, 4
LEAST_ITEMS, LEAST_LIFT = 3, 1.2
"""A genre counts as an interest when at least so many positive items have it, and so many times the catalog's share."""
_VERBS = ("seek", "choose", "go for", "look for")
_NOUNS = ("titles", "choices", "picks", "options")
_OPENINGS = ("You ", "Recently you ", "You recently ")


@dataclass(frozen=True, slots=True)
class Interests:
    """What may be said about one user: genres, strongest first, and titles of one kind of event, newest first."""

    genres: tuple[Attribute, ...] = ()
    titles: tuple[str, ...] = ()
    taken: Taken = "liked"

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Interests:
        """Read what `to_json` wrote."""
        row = json.loads(text)
        return Interests(tuple(Attribute(*g) for g in row["genres"]), tuple(row["titles"]), row["taken"])


def genre_shares(catalog: ItemCatalog) -> Mapping[Attribute, float]:
    """Return which share of the catalog's items has each genre."""
    counts = Counter(a for row in range(len(catalog)) for a in attributes_of(catalog, row) if a.kind == "genre")
    return {genre: count / max(1, len(catalog)) for genre, count in counts.items()}


def interests_of(positives: Sequence[Positive], shares: Mapping[Attribute, float]) -> Interests:
    """Return the facts about a user whose positive items are `positives`, newest first (see `positives_of`)."""
    own = Counter(a for p in positives for a in p.labels if a.kind == "genre")
    lifts = {
        genre: count / len(positives) / shares[genre]
        for genre, count in own.items()
        if count >= LEAST_ITEMS and shares.get(genre, 0.0) > 0
    }
    # By how many items, so that a rare genre taken three times does not come before what fills half of the history.
    genres = sorted((g for g, lift in lifts.items() if lift >= LEAST_LIFT), key=lambda g: (-own[g], -lifts[g], g.text))
    kinds = [p for p in positives if p.taken in frames_en.VERBS]
    taken: Taken = kinds[0].taken if kinds else "liked"
    titles = tuple(dict.fromkeys(p.title for p in kinds if p.taken == taken))[:MAX_TITLES]
    return Interests(tuple(genres[:MAX_GENRES]), titles, taken)


def summary_parts(interests: Interests) -> list[tuple[str, ...]]:
    """Return a summary as a row of alternatives; one reading of each makes it. Empty when nothing is known."""
    seed = hashlib.blake2b(interests.to_json().encode(), digest_size=8).hexdigest()
    first = _taste(interests, seed)
    pairs = [f"{a} and {b}" for a, b in combinations(interests.titles, 2)] or list(interests.titles)
    if not pairs:
        return first
    verbs = tuple(f"{o}{v} " for o in _OPENINGS for v in frames_en.VERBS[interests.taken])
    second = [tuple(drawn(verbs, seed)[:2]), tuple(pairs), (".",)]
    return [*first, (" ",), *second] if first else second


def _taste(interests: Interests, seed: str) -> list[tuple[str, ...]]:
    spoken = [frames_en.speak(g) for g in interests.genres]
    if not spoken:
        return []
    named = (*(f"{a} and {b}" for a, b in combinations(spoken, 2)),) or tuple(spoken)
    if len(spoken) == MAX_GENRES:
        named = (*named, f"{spoken[0]}, {spoken[1]} and {spoken[2]}")
    return [
        ("You ",),
        tuple(drawn(_VERBS, seed)[:2]),
        (" ",),
        named,
        (" ",),
        tuple(drawn(_NOUNS, seed)[:2]),
        (".",),
    ]


def summary_grammar(interests: Interests) -> str:
    """Return the EBNF of all summaries that the facts allow. Raises ValueError when nothing is known."""
    parts = summary_parts(interests)
    if not parts:
        raise ValueError("nothing is known about this user")
    return "root ::= " + " ".join("(" + " | ".join(quote(reading) for reading in part) + ")" for part in parts) + "\n"


def summary_readings(interests: Interests) -> Iterator[str]:
    """Yield every summary of the grammar."""
    parts = summary_parts(interests)
    if parts:
        yield from ("".join(reading) for reading in product(*parts))


def template_summary(interests: Interests) -> str:
    """Return one true summary without a model; "" when nothing is known."""
    return next(summary_readings(interests), "")


def check_summary(text: str, interests: Interests) -> bool:
    """Whether each of at most two sentences passes the checker of reasons against its own facts.

    A title may hold a full stop, so every place where the first sentence may end is tried.
    """
    taste = Evidence(attributes=interests.genres)
    past = Evidence(liked=tuple(Liked(title, interests.taken, (), (), 0.0) for title in interests.titles))
    if any(check_reason(text, facts) == "ok" for facts in (taste, past)):
        return True
    ends = [at + 1 for at in range(len(text) - 1) if text[at : at + 2] == ". "]
    return any(check_reason(text[:at], taste) == "ok" and check_reason(text[at + 1 :], past) == "ok" for at in ends)
