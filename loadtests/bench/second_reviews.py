"""A second opinion on praise, from the raw reviews alone: the part of the second checker that reads them.

Shares no code and no word list with what finds aspects: it looks at whole sentences, not at patterns around a word.
Called by the second checker.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from models.reviews import ReviewsByItem

LEAST_WRITERS, RATED_FROM = 3, 3.5
SAYS_ACCLAIM = re.compile(r"\b(?:prais\w+|acclaim\w*|applau\w+|reviews?|reviewers?|critics?)\b", re.I)
_OBJECT = re.compile(
    r"\b(?:the|its|their) ([a-z]+(?: [a-z]+)??(?:(?:, | and )[a-z]+(?: [a-z]+)??)*)"
    r"(?= of\b|[.,:;?!]|$| praised\b| in reviews\b| for\b)"
)
_ASIDE = re.compile(r", and you \w+(?: \w+)? the first one")
_GOOD = re.compile(
    r"\b(?:ama[sz]ing|awesome|beautiful\w*|best|brillian\w+|catchy|charming|clever|delicious|delight\w*|durable|enjoy\w*"
    r"|excellent\w*|exception\w*|exquisite|fabulous|fantastic\w*|flawless\w*|good|gorgeous|great|hilarious|impress\w+"
    r"|incredibl\w+|inspir\w+|intuitive|lov(?:e|es|ed|ely)|magnificent|marvell?ous|memorable|nice|outstanding|perfect\w*"
    r"|phenomenal|pleasant|remarkabl\w+|satisfying|splendid|stellar|stunning\w*|sturdy|sublime|superb\w*|terrific"
    r"|top-notch|unforgettable|witty|wonderful\w*|ador\w+|admir\w+)\b",
    re.I,
)
_BAD = re.compile(
    r"\b(?:bad|badly|poor\w*|terribl\w+|horribl\w+|awful\w*|boring|dull|weak|worst|hat(?:e|es|ed)|dislik\w+|disappoint\w+"
    r"|annoying|useless|stupid|mediocre|flimsy|faulty|ugly|tedious|ridiculous|lame|cheap\w*|dreadful)\b"
    r"|(?:\bnot?\b|n't|n’t|\bnever\b|\bhardly\b|\bwithout\b)(?: \w+){0,3}?"
    r" (?:great|good|nice|impress\w+|enjoy\w*|lov\w+)",
    re.I,
)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


class Acclaim:
    """Judges what sentences say that reviews praise."""

    def __init__(self, reviews: ReviewsByItem) -> None:
        self._reviews = reviews

    def wrong(self, sentence: str, item_ids: Sequence[str]) -> str | None:
        """Return what reviews of one of the items do not praise though `sentence` says so; None where all do."""
        named = praised_things(sentence)
        if not named:
            return "praise of nothing"
        return next((f"praise: {t}" for t in named for item in item_ids if not self.praised(item, t)), None)

    def praised(self, item_id: str, thing: str) -> bool:
        """Whether enough writers have a good word beside `thing`, far fewer a bad one, and ratings agree."""
        word = re.compile(rf"\b{re.escape(thing)}\b", re.I)
        good: dict[int, int] = defaultdict(int)
        ratings = []
        for review in self._reviews.get(item_id, ()):
            if not word.search(review.text):
                continue
            ratings += [] if review.rating is None else [review.rating]
            for sentence in _SENTENCE.findall(review.text):
                if word.search(sentence):
                    # A sentence may hold both: then it speaks for neither.
                    good[review.writer] += bool(_GOOD.search(sentence)) - bool(_BAD.search(sentence))
        liked = not ratings or sum(ratings) / len(ratings) >= RATED_FROM
        for_it, against = (sum(sign * n > 0 for n in good.values()) for sign in (1, -1))
        return liked and for_it >= LEAST_WRITERS and for_it > 2 * against


def praised_things(sentence: str) -> list[str]:
    """Return what a sentence says that reviews praise; titles in it are marks."""
    found = [part for span in _OBJECT.findall(_ASIDE.sub("", sentence)) for part in re.split(r", | and ", span)]
    return list(dict.fromkeys(found))


def without_acclaim(sentence: str) -> str:
    """Return the sentence without what it says that reviews praise: the rest is judged like any other."""
    rest = _ASIDE.sub("", sentence)
    return SAYS_ACCLAIM.sub("", _OBJECT.sub("the", rest))
