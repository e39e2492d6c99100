"""What English reviews say of what: aspects ("soundtrack") and whether the words beside one praise or blame it.

Few patterns and small word lists, on purpose: what is not plainly praise or blame is neither. An opinion counts only
right before the aspect ("great soundtrack"), right after it ("the soundtrack is great") or as what the writer felt for
it ("loved the soundtrack"), after Hu and Liu 2004, doi:10.1145/1014052.1014073. Negated praise is blame, and wishes,
conditions and questions say nothing. Knows nothing of items or models; called when aspects are found.
"""

# ruff: noqa: SIM905 - word lists read best as running text

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from models.explain import lexicon

Opinion = Literal["praise", "blame"]
MAX_WORDS = 2
"""Words of an aspect."""

_PRAISE = frozenset(
    """
    amazing awesome beautiful brilliant catchy charming clever delicious delightful durable enjoyable
    excellent exceptional exquisite fabulous fantastic flawless good gorgeous great hilarious impressive
    incredible inspired inspiring intuitive lovely magnificent marvellous marvelous memorable nice outstanding
    perfect phenomenal pleasant remarkable satisfying splendid stellar stunning sturdy sublime superb terrific
    top-notch unforgettable witty wonderful
    """.split()
)
_BLAME = frozenset(
    """
    abysmal annoying atrocious awful awkward bad bland boring clumsy confusing corny defective disappointing
    dreadful dull faulty flimsy forgettable horrible horrid inferior irritating laughable lame lousy
    mediocre messy nasty overrated pathetic poor predictable ridiculous rubbish shoddy silly sloppy stupid
    tedious terrible ugly unbearable unfunny uninspired unreliable useless weak worst
    """.split()
)
_FELT: dict[str, Opinion] = {
    **dict.fromkeys("love loved loves adore adored adores enjoy enjoyed enjoys admire admired".split(), "praise"),
    **dict.fromkeys("hate hated hates dislike disliked dislikes".split(), "blame"),
}
_POINTERS = frozenset("the its his her their this that these those my our an a".split())
_IS = frozenset("is are was were looks look looked sounds sound sounded feels feel felt seems seemed remains".split())
_DEGREES = frozenset(
    "very really so absolutely simply just truly quite pretty incredibly extremely totally utterly also".split()
)
_NOT = frozenset("not no never hardly barely neither nor without cannot nothing less none lacks lack".split())
_UNREAL = frozenset("would could should might if wish wished hoped hoping expected expecting supposed unless".split())
_VAGUE = frozenset(
    """
    movie movies film films book books game games product products item items album song show shows series
    episode title thing things stuff way ways lot lots bit time times day days year years moment part parts
    rest whole kind sort type fact idea point reason end one ones everything nothing something anything
    everyone people person man men woman women guy guys girl boy kid kids child children friend friends wife
    husband mother father fan fans others other first last second third next same main only few much many more
    most less least own new old big little long short real true total full half entire actual overall review
    reviews rating ratings star stars classic job example buy purchase use watch read play fun choice gift
    deal luck morning evening enough disappointment disappointments problem problems issue issues flaw flaws
    pain trouble waste mistake mistakes failure lack mess shame pity regret complaint complaints loss damage
    defect defects fault faults worry difficulty addition blend mix place places strong array range amount
    number piece ass shit crap hell damn
    """.split()
)
_VAGUE_ALONE = frozenset("experience quality style level value option options set".split())
_FUNCTION = frozenset(
    """
    of in on at by for to from with into about as and or nor but than then that which who whom whose where
    when while i you he she it we they me him us them is are was were be been being has have had do does did
    can will would could should may might must not no so too very really just also still even here there out
    up down off over again all both every each any some such because since until though although after before
    during through if made makes make gave gives give took takes take got gets get kept keeps keep saves save
    went goes go came comes come says say saw see seen knew know thought think works became becomes become
    brings brought felt left put run runs trying elsewhere
    """.split()
)
_AFTER_NOUN = _FUNCTION | _IS | _NOT | _UNREAL | _DEGREES | _POINTERS
_NO_ASPECT = _PRAISE | _BLAME | _FELT.keys() | _POINTERS | _IS | _DEGREES | _NOT | _UNREAL | _VAGUE | _FUNCTION
_TURN = re.compile(r"\b(?:anything but|nothing but|far from|so-called|lack of|instead of|too bad|as if)\b", re.I)
_SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]*")
_CLAUSE = re.compile(
    r"[,;:()\"“”]|\s[-–—]+\s|—|\b(?:but|however|although|though|yet|while|whereas|except|despite)\b", re.I
)
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ASPECT_WORD = re.compile(r"[a-z]{3,20}")


class Mention(NamedTuple):
    """An aspect in a clause, and what the clause says of it."""

    aspect: str
    opinion: Opinion | None
    clause: str


def mentions(text: str) -> Iterator[Mention]:
    """Yield what may be an aspect: one or two plain words where a noun stands, not names and not what is too vague.

    A word that reasons use for something else is never one, or a sentence could not be told apart from its frame.
    """
    for sentence in _SENTENCE.findall(text):
        unsure = sentence.rstrip().endswith("?") or _TURN.search(sentence) is not None
        for clause in _CLAUSE.split(sentence):
            tokens = _TOKEN.findall(clause)
            low = [token.casefold() for token in tokens]
            silent = unsure or any(word in _UNREAL for word in low)
            for start, end in _nouns(tokens, low):
                said = None if silent else _opinion(low, start, end)
                yield Mention(" ".join(tokens[start:end]), said, clause.strip(" .!?"))


def _nouns(tokens: list[str], low: list[str]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of whole runs of one or two plain words right after a pointer or an opinion."""
    for start in range(1, len(tokens)):
        if not (low[start - 1] in _POINTERS or low[start - 1] in _PRAISE or low[start - 1] in _BLAME):
            continue
        end = start
        while end < len(tokens) and may_be_aspect(tokens[end]):
            end += 1
        whole = end == len(tokens) or low[end] in _AFTER_NOUN or _negates(low[end])
        vague = end - start == 1 and tokens[start] in _VAGUE_ALONE
        if whole and not vague and 0 < end - start <= MAX_WORDS:
            yield start, end


def may_be_aspect(word: str) -> bool:
    """Whether a word may be part of an aspect. Only lower case: names of people and places are none."""
    return (
        _ASPECT_WORD.fullmatch(word) is not None
        and word not in _NO_ASPECT
        and word not in lexicon.ENGLISH
        and not word.endswith("ly")
        and (not word.endswith("ed") or word.endswith("eed"))  # what somebody did is no aspect
    )


def _opinion(low: list[str], start: int, end: int) -> Opinion | None:
    """Return what is said of `low[start:end]`; two opinions that differ are none."""
    found = {*_before(low, start), *_after(low, end)}
    return found.pop() if len(found) == 1 else None


def _before(low: list[str], start: int) -> Iterator[Opinion]:
    """Yield the opinions right before an aspect and what the writer felt for it; where one is negated, none."""
    at, found = start - 1, list[Opinion]()
    while at >= 0 and (low[at] in _PRAISE or low[at] in _BLAME or low[at] == "and"):
        if low[at] != "and":
            found.append("praise" if low[at] in _PRAISE else "blame")
        at -= 1
    if at > 0 and low[at] in _POINTERS and low[at - 1] in _FELT:
        found.append(_FELT[low[at - 1]])
    if not any(map(_negates, low[:start])):
        yield from found


def _after(low: list[str], end: int) -> Iterator[Opinion]:
    """Yield the opinion of "… is really great"; negated praise is blame, negated blame is nothing."""
    if end >= len(low) or not (low[end] in _IS or (_negates(low[end]) and low[end] not in _NOT)):
        return
    negated, at = _negates(low[end]), end + 1
    while at < len(low) and (low[at] in _DEGREES or low[at] == "not"):
        negated |= low[at] == "not"
        at += 1
    if at < len(low) and low[at] in _PRAISE:
        yield "blame" if negated else "praise"
    elif at < len(low) and low[at] in _BLAME and not negated:
        yield "blame"


def _negates(word: str) -> bool:
    return word in _NOT or word.endswith(("n't", "n’t"))
