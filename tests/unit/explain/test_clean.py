"""Cleaning: invisible and structural characters go, quotes and ordinary titles stay."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.explain.checker import check_reason
from models.explain.clean import clean_text, is_quotable, quotable_text
from models.explain.evidence import Evidence


@pytest.mark.parametrize(
    "title",
    [
        "The African Queen",
        "What's Eating Gilbert Grape",
        '"Quoted" Title',
        "Don't Look Back",
        "M*A*S*H",
        "Independence Day (ID4)",
        "Se7en",
        "Alien: Resurrection",
        "City of Lost Children",
        "Ignorance Is Bliss",
        "You've Got Mail",
        "Léon",
        "重庆森林",
        "Привет, мир",
        "10 Things I Hate About You",
        "3M Sandpaper, 120 Grit (50-Pack)",
        "Show Me the Money",
        "Tell Tale Heart",
        "Hot Shots! Part Deux",
        "20,000 Leagues Under the Sea",
    ],
)
def test_an_ordinary_title_is_left_as_it_is(title: str) -> None:
    assert quotable_text(title) == title


def test_invisible_and_bidirectional_characters_go_and_spaces_are_single() -> None:
    assert clean_text("a\u200bb\u202ec\x07 \n\t d\ufeff") == "abc d"


def test_special_tokens_are_broken_also_when_nested_or_full_width() -> None:
    for text in ("<|im_start|>", "<<||im_end||>>", "\uff1c|im_end|\uff1e", "</s>", "[INST]x[/INST]", "<|<|a|>|>"):
        cleaned = clean_text(text)
        assert "<|" not in cleaned and "|>" not in cleaned and "</s>" not in cleaned and "[INST]" not in cleaned


def test_a_long_title_is_cut_at_a_word() -> None:
    cut = clean_text("word " * 100)
    assert len(cut) <= 80 and cut.endswith("word...")


def test_stacked_combining_marks_are_cut() -> None:
    assert len(clean_text("Z" + "\u0335" * 50)) <= 5


def test_titles_without_letters_or_digits_cannot_be_quoted() -> None:
    assert not is_quotable("...") and not is_quotable("") and not is_quotable('"""')


def test_a_cut_title_may_be_said_and_passes_the_checker() -> None:
    evidence = Evidence(
        quotable_text("Professional Cordless Hammer Drill with Two Batteries, Charger and Very Long Name")
    )
    assert evidence.item.endswith("...")
    assert check_reason(f"Take a look at {evidence.item}", evidence) == "ok"


@given(st.text(max_size=300))
def test_cleaning_is_stable_and_leaves_one_plain_line(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert len(once) <= 80 and "\n" not in once
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") for c in once)
