"""How easy a text reads, and which facts of a reference it covers: known formulas, no model.

Flesch reading ease is 206.835 - 1.015 words a sentence - 84.6 syllables a word (R. Flesch, "A new readability
yardstick", Journal of Applied Psychology 32(3), 1948): 60 to 70 is plain English, higher is easier. Syllables are counted
by vowel groups without silent endings, as is usual where there is no dictionary; names come out a little wrong.
Coverage counts content words by a crude stem, so a paraphrase counts as not covered. English only.
"""

# ruff: noqa: E501, SIM905 - a word list reads best as running text

from __future__ import annotations

import re
from functools import lru_cache

_WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")
_SILENT = re.compile(r"(?:[^laeiouy]es|[^aeiouytd]ed|[^laeiouy]e|[aeiouy]le)$")
_STOP = frozenset(
    """
    a about above after again all also although always am among an and any anyone are as at away be because been before being best both but by
    can could did do does doing down during each either else enough even ever every few find for from further gave get gets getting give
    given go goes going good got great had has have having he her here hers him his how however i if in into is it its just
    keep keeps kind less let lot lots made make makes making many may maybe me might more most much must my near need never new next no nor not now
    of off offer offers often on once one only or other others our out over overall own part perhaps pick picked pick's please put quite rather really
    same see seek seem seems she should side since small so some someone something soon such suit suits take than thank that the their them
    then there these they thing things this those though through time title titles to today together too try under until up upon us use very
    was way we well were what when where which while who whom whose why will with within without would yet you your yours
    user users appreciate appreciates enjoy enjoyed enjoys enjoying enjoyable fan fans like liked likes likely love loved loves prefer prefers
    item items book books business businesses place product read reader readers recommend recommended review reviews buy choice choices option
    fits fit look looking similar mood feel feels spirit flavour tone streak appeal
    """.split()
)


def reading_ease(text: str) -> float | None:
    """Return Flesch reading ease, or None for a text without words. Text without an end counts as one sentence."""
    words = _WORD.findall(text)
    if not words:
        return None
    sentences = max(1, len(_SENTENCE_END.findall(text.strip())))
    count = sum(syllables(word) for word in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * count / len(words)


def syllables(word: str) -> int:
    """Return about how many syllables an English word has, at least one."""
    lower = re.sub(r"[^a-z]", "", word.casefold())
    groups = len(_VOWELS.findall(lower))
    if _SILENT.search(lower) and not lower.endswith(("ble", "tle", "dle", "ple", "gle", "cle", "fle", "kle", "zle")):
        groups -= 1
    return max(1, groups)


def content(text: str) -> frozenset[str]:
    """Return the stems of a text's content words."""
    return frozenset(s for w in _WORD.findall(text) if (s := stem(w.casefold())) not in _STOP and len(s) > 2)


@lru_cache(maxsize=65_536)
def stem(word: str) -> str:
    """Return a word without its commonest endings; "" for a word that carries nothing."""
    plain = word.replace("’", "'").removesuffix("'s").replace("'", "")
    if plain in _STOP:
        return ""
    for ending, least in (("ingly", 4), ("ings", 4), ("ing", 4), ("edly", 4), ("ed", 4), ("ies", 3), ("ly", 4)):
        if plain.endswith(ending) and len(plain) - len(ending) >= least:
            plain = plain[: -len(ending)] + ("y" if ending == "ies" else "")
            break
    else:
        plain = plain[:-1] if plain.endswith("s") and not plain.endswith(("ss", "us", "is")) else plain
    return plain.removesuffix("e")


def covered(facts: frozenset[str], said: str) -> float | None:
    """Return the share of `facts` (stems) that a text names, or None where there are no facts."""
    return len(facts & content(said)) / len(facts) if facts else None
