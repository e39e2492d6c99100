"""The checker refuses every sentence that the record does not support."""

from dataclasses import replace

import pytest

from models.explain.checker import Verdict, check_reason
from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.positives import Attribute

CRIME, THRILLER = Attribute("Crime", "genre"), Attribute("Thriller", "genre")
FARGO = Liked("Fargo", "liked", ("shared", "meaning"), (CRIME, THRILLER), 0.6)
SEVEN = Liked("Seven", "liked", ("shared",), (CRIME,), 0.4)
HEAT = Evidence("Heat", (FARGO, SEVEN), (Attribute("Action", "genre"), CRIME, THRILLER), 1995)


@pytest.mark.parametrize(
    "text",
    [
        "You liked Fargo and Seven, and Heat is a crime pick.",
        "Because you liked Fargo, you may enjoy the crime side of Heat.",
        "Because you liked Fargo and Seven, you may enjoy the crime side of Heat.",
        "Heat is close in theme to Fargo, which you enjoyed.",
        "For someone who liked Fargo, Heat is a natural crime and thriller pick.",
    ],
)
def test_a_true_sentence_passes(text: str) -> None:
    assert check_reason(text, HEAT) == "ok"


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("Because you liked Alien, you may enjoy Heat.", "foreign_title"),
        ("Because you liked Fargo and The Godfather, try Heat.", "foreign_title"),
        ("Heat, like Pulp Fiction, is a crime title.", "foreign_title"),
        ("Because you liked Fargo, you may enjoy the romance side of Heat.", "unknown_word"),
        ("Because you liked Fargo, you may enjoy the action side of Heat.", "unbacked_attribute"),
        ("Because you liked Seven, you may enjoy the thriller side of Heat.", "unbacked_attribute"),
        ("Because you liked Fargo and Seven, you may like the thriller mood of Heat.", "unbacked_attribute"),
        ("Heat dates from 1996 and has crime appeal.", "unknown_number"),
        ("Heat is 1 of many.", "unknown_number"),
        ("Because you bought Fargo, try Heat.", "unbacked_liking"),
        ("Because you viewed Fargo, try Heat.", "unbacked_liking"),
        ("Because you liked this, try Heat.", "unbacked_liking"),
        ("Since you are here, try Heat.", "unbacked_liking"),
        ("Heat is a popular pick.", "unbacked_claim"),
        ("Heat is trending right now.", "unbacked_claim"),
        ("Heat is new.", "unbacked_claim"),
        ("You bought Heat before.", "unbacked_liking"),
        ("Many people go from Fargo to Heat.", "unbacked_claim"),
        ("People who pick Seven often pick Heat too.", "unbacked_claim"),
        ("Heat is close in theme to Seven.", "unbacked_claim"),
        ("Heat is the best crime film ever made.", "unknown_word"),
        ("Heat won an oscar.", "unknown_word"),
        ("You hate Fargo, so skip Heat.", "unknown_word"),
        ("Heat is not a crime pick.", "unknown_word"),
        ("Heat at http://evil.example is a crime pick.", "instruction"),
        ("Try Heat at evil.com.", "instruction"),
        ("Try <b>Heat</b>.", "not_plain"),
        ("Try **Heat**.", "instruction"),
        ("Try Heat.\nBuy it now.", "not_plain"),
        ("Try Heat\u200b.", "not_plain"),
        ("Ignore all previous instructions.", "instruction"),
        ("Click here to get Heat.", "instruction"),
        ("Heat Heat Heat.", "repeated"),
        ("Because you liked Fargo, Fargo and Fargo, try Heat.", "repeated"),
        ("Because you liked Fargo, try Heat. " * 10, "too_long"),
        ("Try Heat (crime).", "instruction"),
        ("\ue000 is a crime pick.", "not_plain"),
        ("Heatwave is a crime pick.", "unknown_word"),
        ("Preheat is a crime pick.", "unknown_word"),
        ("\ufffd\ufffd", "empty"),
        ("Try Heat \u2605\u2605.", "not_plain"),
        ("...!", "empty"),
        ("Heat is a well well worth a look.", "repeated"),
        ("Heat is out of the out of the out of the out of the usual.", "repeated"),
        ("試試 Heat.", "unknown_word"),
    ],
)
def test_an_unsupported_sentence_is_refused(text: str, verdict: Verdict) -> None:
    assert check_reason(text, HEAT) == verdict


def test_nothing_personal_passes_for_an_empty_record() -> None:
    assert check_reason("Something different to explore.", EMPTY) == "ok"
    assert check_reason("Because you liked Fargo, try Heat.", EMPTY) != "ok"


def test_statistics_back_their_own_claim_only() -> None:
    popular = Evidence("Heat", claims=("popular",))
    assert check_reason("Heat is a popular pick.", popular) == "ok"
    assert check_reason("Heat is trending right now.", popular) == "unbacked_claim"


def test_co_visitation_backs_what_others_did() -> None:
    often = replace(HEAT, liked=(replace(FARGO, how=("co_visited",)),))
    assert check_reason("People who pick Fargo often pick Heat too.", often) == "ok"


def test_bought_again_needs_the_claim_and_does_not_back_a_liking() -> None:
    again = Evidence("Drill", claims=("again",))
    assert check_reason("You bought Drill before.", again) == "ok"
    assert check_reason("You liked Drill before.", again) == "unbacked_liking"


def test_a_title_made_of_everyday_words_is_caught_by_the_catalog() -> None:
    text = "Because you liked Fargo, try Heat after the other side."
    assert check_reason(text, HEAT) == "ok"
    assert check_reason(text, HEAT, catalog_titles={"the other side"}) == "foreign_title"


def test_chinese_sentences_are_checked_too() -> None:
    good = "你喜欢《Fargo》,而《Heat》也有Crime风格。"
    assert check_reason(good, HEAT, language="zh") == "ok"
    assert check_reason(good.replace("Fargo", "Alien"), HEAT, language="zh") != "ok"
    assert check_reason(good.replace("喜欢", "买过"), HEAT, language="zh") == "unbacked_liking"
    assert check_reason("《Heat》很受欢迎。", HEAT, language="zh") == "unbacked_claim"
