"""Titles: turns catalogue titles ("African Queen, The (1951)") into what a person would write.

Importers store the result, so prompts, reasons and answers all show the same title. Knows nothing of catalogs.
"""

from __future__ import annotations

import re

# Articles that film catalogues move behind the title. The Italian "I" is left out: it is also a numeral and a pronoun.
_ARTICLES = "the|an|a|le|la|les|l'|une|un|der|die|das|ein|eine|il|lo|gli|el|los|las|det|den|en|ett|het|de|os|o|da"
_MOVED = re.compile(rf"(?P<rest>.+\S),\s+(?P<article>{_ARTICLES})", re.IGNORECASE)
_PARENTHESIS = re.compile(r"\(([^()]*)\)")
_PREFIX = re.compile(r"(?P<prefix>a\.?k\.?a\.?\s+)?(?P<title>.*)", re.IGNORECASE | re.DOTALL)
_YEAR = re.compile(r"\s*\((?P<year>1[89]\d\d|20\d\d)(?:\s*[-–—]\s*(?:\d{4})?)?\)(?:\s*\((?:V|TV|mini)\))?\s*\Z")


def split_year(title: str) -> tuple[str, int | None]:
    """Return the title without its trailing "(1951)", "(2006–2007)" or "(1995) (V)", and the (first) year."""
    match = _YEAR.search(title)
    if match is None or match.start() == 0:
        return title.strip(), None
    return title[: match.start()].strip(), int(match["year"])


def display_title(title: str) -> str:
    """Return the title in reading order, without its year: "African Queen, The (1951)" → "The African Queen".

    Alternative titles in parentheses are put in order too; a second call changes nothing.
    """
    bare, _ = split_year(" ".join(title.split()))
    main, parenthesis, rest = bare.partition(" (")
    alternatives = _PARENTHESIS.sub(lambda m: f"({_in_order(m[1])})", parenthesis + rest)
    return _in_order(main) + alternatives


def _in_order(title: str) -> str:
    match = _PREFIX.fullmatch(title)
    assert match is not None  # the pattern matches any text
    prefix, bare = match["prefix"] or "", match["title"]
    moved = _MOVED.fullmatch(bare)
    if moved is None:
        return title
    article = moved["article"]
    return f"{prefix}{article}{'' if article.endswith(chr(39)) else ' '}{moved['rest']}"
