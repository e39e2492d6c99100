"""Praise and blame are found only where a review plainly says so; everything doubtful is neither."""

import pytest

from models.explain.opinions import may_be_aspect, mentions


def said(text: str) -> list[tuple[str, str | None]]:
    return [(m.aspect, m.opinion) for m in mentions(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A great soundtrack.", [("soundtrack", "praise")]),
        ("The soundtrack is really great", [("soundtrack", "praise")]),
        ("I loved the soundtrack", [("soundtrack", "praise")]),
        ("the battery life was excellent, honestly", [("battery life", "praise")]),
        ("beautiful and clever plot", [("plot", "praise")]),
        ("I loved its gorgeous visual effects", [("visual effects", "praise")]),
        ("Awful acting", [("acting", "blame")]),
        ("The acting is not good", [("acting", "blame")]),
        ("The acting wasn't very good", [("acting", "blame")]),
        ("We hated the ending", [("ending", "blame")]),
        ("A great soundtrack but the plot is boring.", [("soundtrack", "praise"), ("plot", "blame")]),
        # neither
        ("The soundtrack", [("soundtrack", None)]),
        ("Not a great soundtrack", [("soundtrack", None)]),
        ("I never enjoyed the soundtrack", [("soundtrack", None)]),
        ("The acting is not bad", [("acting", None)]),
        ("Is it a great soundtrack?", [("soundtrack", None)]),
        ("With drums it would have a great soundtrack", [("soundtrack", None)]),
        ("A great soundtrack if you hate music", [("soundtrack", None)]),
        ("Anything but a great soundtrack", [("soundtrack", None)]),
        ("They hated the great soundtrack", [("soundtrack", None)]),
        ("a great director made the soundtrack", [("director", "praise"), ("soundtrack", None)]),
        ("the soundtrack of a great composer", [("soundtrack", None), ("composer", "praise")]),
        # no aspects
        ("Great movie, good fun, a great thing", []),
        ("The love story is bad", []),
        ("a terrible disappointment, no problems", []),
        ("the great Maria sang", []),
        ("great mood and spirit", []),  # words that frames use
        ("great x1 r2d2 ab", []),
        ("great soundtrack scene music here", []),  # longer than two words
    ],
)
def test_what_is_said_of_what(text: str, found: list[tuple[str, str | None]]) -> None:
    assert said(text) == found


@pytest.mark.parametrize(
    "word",
    ["great", "the", "movie", "Soundtrack", "mood", "praise", "reviews", "slowly", "a", "x" * 21, "s0und", "日本"],
)
def test_what_is_no_plain_word_of_its_own_is_no_aspect(word: str) -> None:
    assert not may_be_aspect(word)
