"""A second opinion on reasons, from the raw event log and the catalog alone.

Written apart from `models.explain`: it shares no code, no word list and no data with the evidence, the grammar or the
checker there. It reads an English sentence, finds the titles, attributes, numbers and claims in it, and holds each
against what the user really did, what the catalog really says, what all users really did and what reviews really say.
Called by the `explain` benchmark and by tests.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import numpy.typing as npt

from loadtests.bench.second_reviews import SAYS_ACCLAIM, Acclaim, without_acclaim
from models.catalog import Item
from models.events import EventLog, EventType
from models.reviews import ReviewsByItem

LIKED_FROM = 3.5
NEXT_EVENTS = 10
POPULAR_SHARE, TRENDING_RANKS, HALF_LIFE_DAYS = 0.05, 50, 14.0
NEAR_COSINE = 0.6
_DAY_MS = 86_400_000.0
_ACTS: dict[str, frozenset[int]] = {
    "liked": frozenset({EventType.like, EventType.rating}),
    "enjoyed": frozenset({EventType.like, EventType.rating}),
    "loved": frozenset({EventType.like, EventType.rating}),
    "bought": frozenset({EventType.purchase}),
    "viewed": frozenset({EventType.view, EventType.click}),
    "looked at": frozenset({EventType.view, EventType.click}),
    "picked": frozenset({EventType.add_to_cart}),
    "chose": frozenset({EventType.add_to_cart}),
}
_NEGATIVE = frozenset({EventType.dislike, EventType.hide})
_ACT = re.compile(r"\b(?:you|(?:someone|anyone|person) who) (" + "|".join(_ACTS) + r")\b", re.I)
_TOGETHER = re.compile(r"\b(?:often|frequent|frequently|common|well-worn|people|others)\b", re.I)
_NEAR = re.compile(r"\b(?:close|neighbouring|ground|territory|theme|subject)\b", re.I)
_POPULAR = re.compile(r"\b(?:popular|favourite|people)\b", re.I)
_TRENDING = re.compile(r"\b(?:trending|on the rise|attention|right now|at the moment|these days)\b", re.I)
_AGAIN = re.compile(r"\b(?:before|again|running low|running out)\b", re.I)
_NEW = re.compile(r"\b(?:new|arrival|just in|recently added)\b", re.I)
_PRAISE = re.compile(
    r"\b(?:best|greatest|award|oscar|winning|free|cheap|sale|discount|guarantee\w*|masterpiece|must|never|everyone|all)\b",
    re.I,
)
_MARKUP = re.compile(r"[<>{}\[\]|\\`*_#@/=$%^~]|https?|www\.|\.\w{2,}(?:/|$)", re.I)
_OPENINGS = frozenset(
    {"After", "As", "Because", "For", "Given", "If", "In", "Like", "More", "Next", "One", "Since", "With"}
)
_ITEM, _OWN, _LABEL = "\x01", "\x02", "\x03"


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a user did with one item, as the log tells it."""

    types: set[int] = field(default_factory=set)
    liked: list[bool] = field(default_factory=list)
    last_negative: list[bool] = field(default_factory=list)


class SecondChecker:
    """Judges sentences about items of one catalog for users of one event log."""

    def __init__(
        self,
        items: Sequence[Item],
        events: EventLog,
        *,
        embeddings: npt.NDArray[np.float32] | None = None,
        reviews: ReviewsByItem | None = None,
    ) -> None:
        """`embeddings` are unit rows in the order of `items`; without them "close in theme" is never believed.

        `reviews` are all that were imported; without them no praise is.
        """
        self._reviews = Acclaim(reviews or {})
        self._items = {item.item_id: item for item in items}
        self._row = {item.item_id: at for at, item in enumerate(items)}
        self._embeddings = embeddings
        self._title = {item.item_id: plain(item.title) for item in items}
        self._titles = {title for title in self._title.values() if len(title.split()) > 1}
        self._longest = max((len(t.split()) for t in self._titles), default=1)
        self._labels = {i.item_id: {v.casefold() for vs in i.labels.values() for v in vs} for i in items}
        self._every_label = sorted({v for vs in self._labels.values() for v in vs}, key=len, reverse=True)
        self._users: dict[str, dict[str, _Taken]] = defaultdict(dict)
        self._places: dict[str, dict[str, int]] = defaultdict(dict)
        """By item: where in each user's order of events it first stands."""
        self._read(events)
        self._popular, self._trending = self._ranks(events)

    def wrong(self, sentence: str, *, user_id: str, item_id: str) -> str | None:
        """Return what is untrue or out of place in `sentence`, or None when the raw data backs all of it."""
        rest, cited = self._without_titles(sentence, user_id, item_id)
        if not sentence or len(sentence) > 240 or _MARKUP.search(rest):
            return "form"
        if SAYS_ACCLAIM.search(rest):  # before labels go: what is praised may be called as a genre is
            verdicts = [self._reviews.wrong(rest, [item_id, *one]) for one in product(*cited)]
            if None not in verdicts:
                return verdicts[0]
            rest = without_acclaim(rest)
        rest, named = self._without_labels(rest)
        if foreign := self._foreign_title(rest):
            return f"title: {foreign}"
        year = self._items[item_id].numbers.get("year")
        if any(year is None or float(number) != year for number in re.findall(r"\d+", rest)):
            return "number"
        if _PRAISE.search(rest):
            return "praise"
        # Two films may have one title: a sentence is true when it is true of one of them.
        verdicts = [self._about(rest, user_id, item_id, list(one), named) for one in product(*cited)]
        return None if None in verdicts else verdicts[0]

    def _about(self, rest: str, user_id: str, item_id: str, cited: list[str], named: list[str]) -> str | None:
        for label in named:
            if any(label not in self._labels[one] for one in (item_id, *cited)):
                return f"attribute: {label}"
        return self._acts(rest, user_id, item_id, cited) or self._claims(rest, item_id, cited, named)

    def _acts(self, rest: str, user_id: str, item_id: str, cited: list[str]) -> str | None:
        said = {verb.casefold() for verb in _ACT.findall(rest)}
        about = cited or ([item_id] if said else [])
        for verb in said:
            for one in about:
                taken = self._users[user_id].get(one)
                if taken is None or not taken.types & _ACTS[verb]:
                    return f"act: {verb}"
                if verb in ("liked", "enjoyed", "loved") and not any(taken.liked):
                    return f"act: {verb}"
        for one in cited:  # cited as something that speaks for the item, whatever verb stands there
            taken = self._users[user_id][one]
            if taken.last_negative[-1]:
                return "cites a dislike"
        return None

    def _claims(self, rest: str, item_id: str, cited: list[str], named: list[str]) -> str | None:
        popular = self._popular[item_id] < max(1, int(len(self._items) * POPULAR_SHARE))
        trending = self._trending[item_id] < TRENDING_RANKS
        together = bool(cited) and all(self._followed(one, item_id) for one in cited)
        if _TRENDING.search(rest) and not trending:
            return "claim: trending"
        if _TOGETHER.search(rest) and not (together or (not cited and (popular or trending))):
            return "claim: together"
        if _POPULAR.search(rest) and not (popular or trending or together):
            return "claim: popular"
        if _NEAR.search(rest) and not (cited and all(self._near(one, item_id) for one in cited)):
            return "claim: near"
        if re.search(r"\b(?:similar|related)\b", rest) and not (
            cited and (named or all(self._near(one, item_id) for one in cited))
        ):
            return "claim: similar"
        if _AGAIN.search(rest) or _NEW.search(rest):
            return "claim: again or new"  # neither is ever true of the data this is used on
        return None

    def _without_titles(self, sentence: str, user_id: str, item_id: str) -> tuple[str, list[list[str]]]:
        """Take out the item's title and those of the user's own items, longest first.

        Returns the rest, and per cited title the user's items that have it.
        """
        own: dict[str, list[str]] = defaultdict(list)
        for one in self._users[user_id]:
            if one != item_id and (title := self._title.get(one)):
                own[title].append(one)
        marks = [(self._title[item_id], _ITEM), *((title, _OWN) for title in own)]
        rest, cited = sentence, []
        for title, mark in sorted(marks, key=lambda m: -len(m[0])):
            found = re.compile(rf"(?<![\w-]){re.escape(title)}(?![\w-])").search(rest) if title in rest else None
            if found is None:
                continue
            if found.start() == 0 and mark == _OWN and title in _OPENINGS:
                continue  # "After …" opens a sentence; the film of that name is not meant
            rest = rest[: found.start()] + mark + rest[found.end() :]
            cited += [own[title]] if mark == _OWN else []
        return rest, cited

    def _without_labels(self, rest: str) -> tuple[str, list[str]]:
        named = []
        for label in self._every_label:
            pattern = re.compile(rf"(?<![\w-]){re.escape(label)}(?![\w-])", re.I)
            if pattern.search(rest):
                rest = pattern.sub(_LABEL, rest)
                named.append(label)
        return rest, named

    def _foreign_title(self, rest: str) -> str | None:
        words = rest.split()
        for length in range(min(self._longest, len(words)), 1, -1):
            for at in range(len(words) - length + 1):
                run = " ".join(words[at : at + length]).strip(" ,.;:?!")
                if run in self._titles:
                    return run
        # A capital letter inside a sentence is a name that nobody vouches for.
        found = re.search(r"(?<=[a-z,;\x01\x02\x03] )[A-Z]\w+", rest)
        return found.group() if found else None

    def _followed(self, before: str, after: str) -> bool:
        """Whether at least two people and one in a hundred who took `before` took `after` close to it."""
        takers, others = self._places[before], self._places[after]
        near = sum(abs(others[user] - at) <= NEXT_EVENTS for user, at in takers.items() if user in others)
        return near >= 2 and near >= len(takers) * 0.01

    def _near(self, one: str, other: str) -> bool:
        if self._embeddings is None:
            return False
        return float(self._embeddings[self._row[one]] @ self._embeddings[self._row[other]]) >= NEAR_COSINE

    def _read(self, events: EventLog) -> None:
        length: dict[str, int] = defaultdict(int)
        for at in range(len(events)):
            user, item = str(events.user_ids[at]), str(events.item_ids[at])
            taken = self._users[user].setdefault(item, _Taken())
            kind, value = int(events.types[at]), float(events.values[at])
            taken.types.add(kind)
            taken.liked.append(kind == EventType.like or (kind == EventType.rating and value >= LIKED_FROM))
            taken.last_negative.append(kind in _NEGATIVE or (kind == EventType.rating and value < LIKED_FROM))
            self._places[item].setdefault(user, length[user])
            length[user] += 1

    def _ranks(self, events: EventLog) -> tuple[Mapping[str, int], Mapping[str, int]]:
        counts: dict[str, float] = dict.fromkeys(self._items, 0.0)
        recent: dict[str, float] = dict.fromkeys(self._items, 0.0)
        end = int(events.timestamps_ms.max()) if len(events) else 0
        for at in range(len(events)):
            if int(events.types[at]) in _NEGATIVE | {EventType.impression, EventType.search}:
                continue
            item = str(events.item_ids[at])
            counts[item] += 1
            recent[item] += 0.5 ** ((end - int(events.timestamps_ms[at])) / (HALF_LIFE_DAYS * _DAY_MS))
        return tuple(  # type: ignore[return-value]
            {item: rank for rank, item in enumerate(sorted(scores, key=lambda i: -scores[i]))}
            for scores in (counts, recent)
        )


def plain(title: str) -> str:
    """Return a title on one line in its composed form."""
    return " ".join(unicodedata.normalize("NFKC", title).split())
