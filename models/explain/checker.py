"""The checker: reads a finished sentence and says whether the record supports all of it.

It knows nothing of frames or grammars. It replaces the record's titles and attributes by marks, then judges what is
left: every word must be in a small lexicon of connectives, every number must be the item's year, and every claim
("you liked", "popular", "often chosen") must be backed by the record. Called on every generated reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Container
from itertools import pairwise
from typing import Literal

from models.explain import lexicon
from models.explain.clean import clean_text, is_quotable
from models.explain.evidence import Evidence, Liked
from models.explain.positives import Taken

Verdict = Literal[
    "ok",
    "empty",
    "too_long",
    "not_plain",
    "instruction",
    "unknown_number",
    "foreign_title",
    "unknown_word",
    "unbacked_liking",
    "unbacked_attribute",
    "unbacked_claim",
    "repeated",
]

MAX_CHARS = 240
_MARK = re.compile("[\ue000-\ue0ff]")  # private use: cleaning removes these characters from all input
_ITEM, _LIKED, _ATTRIBUTE = 0xE000, 0xE010, 0xE080
_NUMBER = re.compile(r"\d+")
_CAPITAL = re.compile(r"(?<![.?!:] )(?<!^)\b[A-Z][a-z]")
_MOST_OF_A_WORD = 3
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def check_reason(
    text: str, evidence: Evidence, *, language: str = "en", catalog_titles: Container[str] | None = None
) -> Verdict:
    """Return "ok" or the first thing that is wrong with `text`.

    `catalog_titles`, where given, catches titles of other items that are made of everyday words alone.
    """
    if not text.strip():
        return "empty"
    if len(text) > MAX_CHARS:
        return "too_long"
    if _MARK.search(text) or clean_text(text, limit=MAX_CHARS) != text:
        return "not_plain"
    rest, cited, named = _masked(text, evidence, language)
    for verdict in (
        _check_words(rest, evidence, language, catalog_titles),
        _check_names(rest, evidence, cited, named, praise=lexicon.says_praise(rest, language)),
        _check_claims(rest, evidence, cited, named, language),
    ):
        if verdict != "ok":
            return verdict
    return "ok"


def _masked(text: str, evidence: Evidence, language: str) -> tuple[str, list[Liked], list[str]]:
    """Replace titles and attributes by marks; return the rest, the cited titles and the named attributes."""
    marks: list[tuple[str, int, re.RegexFlag]] = []
    if evidence.item:
        marks.append((evidence.item, _ITEM, re.NOFLAG))
    marks += [(liked.title, _LIKED + at, re.NOFLAG) for at, liked in enumerate(evidence.liked)]
    marks.sort(key=lambda m: -len(m[0]))  # titles before attributes, longer before shorter
    attributes = sorted({a.text.casefold() for a in (*evidence.attributes, *evidence.shared)}, key=len, reverse=True)
    marks += [(name, _ATTRIBUTE + at, re.IGNORECASE) for at, name in enumerate(attributes)]
    # Chinese has no spaces: there only a Latin letter or a digit beside a name makes it part of a longer one.
    edge = "[A-Za-z0-9]" if language == "zh" else r"[^\W_]"
    rest = text
    for literal, code, flags in marks:
        name = re.escape(literal)
        rest = re.sub(f"《{name}》|(?<!{edge}){name}(?!{edge})", chr(code), rest, flags=flags)
    cited = [liked for at, liked in enumerate(evidence.liked) if chr(_LIKED + at) in rest]
    named = [name for at, name in enumerate(attributes) if chr(_ATTRIBUTE + at) in rest]
    return rest, cited, named


def _check_words(rest: str, evidence: Evidence, language: str, titles: Container[str] | None) -> Verdict:
    words = _MARK.sub(" ", rest)
    if not _MARK.search(rest) and not _WORD.search(words):
        return "empty"
    if not is_quotable(words + "a") or re.search(r"[\"()\[\]/@#$%&*+=]", words):
        return "instruction"
    if any(unicodedata.category(c)[0] in "SM" for c in words):
        return "not_plain"
    if any(n != str(evidence.year) for n in _NUMBER.findall(words)):
        return "unknown_number"
    if language == "zh":
        return "ok" if lexicon.is_chinese(_NUMBER.sub("", words)) else "unknown_word"
    if _CAPITAL.search(_MARK.sub("x", rest)):
        return "foreign_title"
    if titles is not None and _holds_title(words, titles):
        return "foreign_title"
    said = [w.casefold() for w in _WORD.findall(words)]
    if any(w not in lexicon.ENGLISH for w in said):
        return "unknown_word"
    # What a model that lost its way writes ("well well well", "out of the out of the"); no sentence of ours does.
    runs = [[w.casefold() for w in _WORD.findall(part)] for part in _MARK.split(rest)]
    stuck = (
        any(a == b for run in runs for a, b in pairwise(run))
        or max(Counter(said).values(), default=0) > _MOST_OF_A_WORD
    )
    return "repeated" if stuck else "ok"


def _check_names(rest: str, evidence: Evidence, cited: list[Liked], named: list[str], *, praise: bool) -> Verdict:
    """Every attribute named beside liked titles must be shared with each of them; nothing is said twice.

    In a sentence of praise all that is named must be what reviews praise, in any other nothing of it counts.
    """
    titles = {chr(_ITEM): evidence.item} | {chr(_LIKED + at): liked.title for at, liked in enumerate(evidence.liked)}
    # A film called "Up" is not said twice by "Up for more?": everyday words do not count as repeated titles.
    marks = [m for m in _MARK.findall(rest) if titles.get(m, "").casefold() not in lexicon.ENGLISH]
    if len(marks) != len(set(marks)):
        return "repeated"
    for liked in cited:
        shared = {a.text.casefold() for a in liked.shared if (a.kind == "aspect") == praise}
        if any(name not in shared for name in named):
            return "unbacked_attribute"
    known = (*evidence.attributes, *evidence.shared)
    backed = {a.text.casefold() for a in known if (a.kind == "aspect") == praise}
    return "ok" if all(name in backed for name in named) else "unbacked_attribute"


def _check_claims(rest: str, evidence: Evidence, cited: list[Liked], named: list[str], language: str) -> Verdict:
    said = lexicon.said_verbs(rest, language)
    again = "again" in evidence.claims and said <= {"bought"}
    taken: set[Taken] = {liked.taken for liked in cited}
    if said and not again and (not cited or taken != said):
        return "unbacked_liking"
    if lexicon.says_personal(rest, language) and not cited and not again:
        return "unbacked_liking"
    hows = [set(liked.how) for liked in cited]
    for claim in lexicon.claims_of(rest, language):
        linked = bool(hows) and all(claim in how for how in hows)
        similar = claim == "similar" and bool(cited) and (bool(named) or all("meaning" in how for how in hows))
        crowd = claim == "crowd" and (
            {"popular", "trending"} & set(evidence.claims) or (hows and all("co_visited" in how for how in hows))
        )
        praised = claim == "praised" and bool(named)  # each of them is praised: see `_check_names`
        if not (claim in evidence.claims or linked or similar or crowd or praised):
            return "unbacked_claim"
    return "ok"


def _holds_title(words: str, titles: Container[str]) -> bool:
    tokens = words.split()
    return any(
        " ".join(tokens[at : at + n]).strip(" ,.;:?!") in titles
        for n in range(2, 9)
        for at in range(len(tokens) - n + 1)
    )
