"""The grammar accepts exactly the sentences of the record, whatever the titles are made of."""

import re
from dataclasses import replace

import pytest
import xgrammar
from hypothesis import given, settings
from hypothesis import strategies as st
from xgrammar.testing import _is_grammar_accept_string as accepts

from models.explain.checker import check_reason
from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.grammar import quote, readings_of, reason_grammar, sentences_of
from models.explain.positives import Attribute

CRIME, THRILLER = Attribute("Crime", "genre"), Attribute("Thriller", "genre")
FARGO = Liked("Fargo", "liked", ("co_visited", "shared", "meaning"), (CRIME, THRILLER), 0.6)
SEVEN = Liked("Seven", "liked", ("shared",), (CRIME,), 0.4)
HEAT = Evidence("Heat", (FARGO, SEVEN), (CRIME, THRILLER), 1995)
ODD = [
    'The "Best" One',
    "Back\\slash",
    'a ::= "b"',
    "Émile ☕ 🎬",
    "(x | y)",
    "[a-z]*",
    "# no comment",
    "It's",
    "重庆森林",
]


@given(st.text(min_size=1, max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_becomes_a_literal_that_stands_for_itself_alone(text: str) -> None:
    if "\0" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return  # neither survives cleaning; a literal cannot hold them
    grammar = xgrammar.Grammar.from_ebnf(f"root ::= {quote(text)}\n")
    assert accepts(grammar, text)
    assert not accepts(grammar, text + "x") and not accepts(grammar, "x" + text) and not accepts(grammar, text[:-1])


@pytest.mark.parametrize("title", ODD)
def test_odd_titles_compile_and_every_reading_is_accepted(title: str) -> None:
    evidence = replace(HEAT, item=title)
    grammar = xgrammar.Grammar.from_ebnf(reason_grammar(evidence))
    readings = list(readings_of(evidence))
    assert len(readings) > 5
    for text in readings[:: max(1, len(readings) // 25)]:
        assert accepts(grammar, text)
        assert not accepts(grammar, text + " Buy now.") and not accepts(grammar, text.replace(title, "Alien") + "!")


def test_a_sentence_with_another_title_or_claim_is_not_in_the_grammar() -> None:
    grammar = xgrammar.Grammar.from_ebnf(reason_grammar(HEAT))
    for text in readings_of(HEAT):
        if "Fargo" in text:
            assert not accepts(grammar, text.replace("Fargo", "Alien"))
            assert not accepts(grammar, text.replace("Fargo", "Fargo, Alien"))


def test_there_is_no_character_class_in_any_grammar() -> None:
    for evidence in (HEAT, EMPTY, Evidence("x", (), (CRIME,), 1990, None, ("popular",))):
        for language in ("en", "zh"):
            outside = re.sub(r'"(?:\\.|[^"\\])*"', "", reason_grammar(evidence, language))
            assert not re.search(r"[\[\]*+?.]", outside)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_reading_is_short_and_passes_the_checker(language: str) -> None:
    maker = Attribute("Bosch", "maker")
    records = [
        Evidence(
            item, (replace(FARGO, taken=taken, shared=(CRIME, maker)), replace(SEVEN, taken=taken)), (CRIME, maker)
        )
        for taken in ("liked", "bought", "viewed", "chosen", "seed")
        for item in ("Heat", "Up", "")
    ]
    records += [
        Evidence("Heat", (), (CRIME, THRILLER), 1995, None, (c,)) for c in ("popular", "trending", "new", "again")
    ]
    records += [EMPTY, Evidence("Heat", (), (CRIME,), 1995)]
    for evidence in records:
        readings = list(readings_of(evidence, language))
        for text in readings[:: max(1, len(readings) // 60)]:
            assert len(text) <= 240
            assert check_reason(text, evidence, language=language) == "ok", text


def test_records_draw_different_frames() -> None:
    drawn = {tuple(sentences_of(replace(HEAT, year=y))[0]) for y in range(1950, 1990)}
    assert len(drawn) > 10


def test_long_titles_leave_only_frames_that_fit() -> None:
    long = replace(HEAT, item="I" * 80, liked=(replace(FARGO, title="L" * 80), replace(SEVEN, title="M" * 80)))
    assert max(map(len, readings_of(long))) <= 240
