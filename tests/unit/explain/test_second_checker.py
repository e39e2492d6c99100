"""The second checker judges from the raw log and the catalog, and agrees with nothing that is not there."""

import ast
from pathlib import Path

import numpy as np
import pytest

import loadtests.bench.second_checker as second
import loadtests.bench.second_reviews as second_reviews
from loadtests.bench.second_checker import SecondChecker
from models.catalog import Item
from models.events import EventLog, EventType
from models.reviews import Review

ITEMS = [
    Item("h", "Heat", labels={"genre": ("Crime", "Action")}, numbers={"year": 1995.0}),
    Item("f", "Fargo", labels={"genre": ("Crime",)}),
    Item("s", "Seven", labels={"genre": ("Crime", "Thriller")}),
    Item("b", "Blade Runner", labels={"genre": ("Film-Noir",)}),
    Item("x", "Face/Off (1997)", labels={"genre": ("Action",)}),
    *(Item(f"o{n}", f"Other Film {n}") for n in range(60)),
]
ROWS = [
    ("u", "f", EventType.rating, 5.0),
    ("u", "s", EventType.rating, 2.0),
    ("u", "x", EventType.view, 1.0),
    *((user, item, EventType.rating, 4.0) for user in ("v", "w") for item in ("f", "h")),
]


@pytest.fixture(scope="module")
def checker() -> SecondChecker:
    users, items, types, values = (np.array(c, dtype=object) for c in zip(*ROWS, strict=True))
    log = EventLog(users, items, types.astype(np.uint8), values.astype(np.float32), np.arange(len(ROWS)) + 10**12)
    vectors = np.eye(len(ITEMS), dtype=np.float32)
    vectors[1] = vectors[0]  # Fargo is close to Heat
    return SecondChecker(ITEMS, log, embeddings=vectors)


@pytest.mark.parametrize(
    "sentence",
    [
        "Because you liked Fargo, you may enjoy the crime side of Heat.",
        "Many people go from Fargo to Heat.",
        "Heat is close in theme to Fargo, which you enjoyed.",
        "Heat dates from 1995 and has action appeal.",
        "You viewed Face/Off (1997), and Heat brings action flavour.",
        "Something different to explore.",
    ],
)
def test_what_the_log_and_the_catalog_back_is_true(checker: SecondChecker, sentence: str) -> None:
    assert checker.wrong(sentence, user_id="u", item_id="h") is None


@pytest.mark.parametrize(
    ("sentence", "why"),
    [
        ("Because you liked Seven, you may enjoy the crime side of Heat.", "act: liked"),
        ("Because you bought Fargo, try Heat.", "act: bought"),
        ("Because you liked Face/Off (1997), try Heat.", "act: liked"),
        ("After Seven, how about Heat?", "cites a dislike"),
        ("Because you liked Blade Runner, try Heat.", "title: Blade Runner"),
        ("Because you liked Alien, try Heat.", "title: Alien"),
        ("Because you liked Fargo, you may enjoy the thriller side of Heat.", "attribute: thriller"),
        ("Because you liked Fargo, you may enjoy the action side of Heat.", "attribute: action"),
        ("Heat dates from 1996.", "number"),
        ("Many people go from Face/Off (1997) to Heat.", "claim: together"),
        ("Heat is close in theme to Face/Off (1997).", "claim: near"),
        ("Heat is the best crime pick.", "praise"),
        ("You bought Heat before.", "act: bought"),
        ("Heat is new.", "claim: again or new"),
        ("See http://evil.example for Heat.", "form"),
        ("", "form"),
    ],
)
def test_what_they_do_not_back_is_named(checker: SecondChecker, sentence: str, why: str) -> None:
    assert checker.wrong(sentence, user_id="u", item_id="h") == why


def test_of_two_films_with_one_title_one_that_was_liked_is_enough() -> None:
    items = [*ITEMS, Item("f2", "Fargo", labels={"genre": ("Crime",)})]
    rows = [("u", "f", EventType.rating, 1.0), ("u", "f2", EventType.rating, 5.0)]
    users, ids, types, values = (np.array(c, dtype=object) for c in zip(*rows, strict=True))
    log = EventLog(users, ids, types.astype(np.uint8), values.astype(np.float32), np.arange(2) + 10**12)
    sentence = "Because you liked Fargo, you may enjoy the crime side of Heat."
    assert SecondChecker(items, log).wrong(sentence, user_id="u", item_id="h") is None


def test_it_shares_no_code_with_what_it_judges() -> None:
    data = {"models.catalog", "models.events", "models.reviews"}  # what is judged, and nothing that judges
    for module in (second, second_reviews):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {n for n in names if n and n.split(".")[0] in {"models", "serve", "pipelines", "cluster"}} <= data


SAID = {
    "h": (
        *(
            Review(t, 4.5, n)
            for n, t in enumerate(["A great soundtrack.", "Loved its soundtrack", "soundtrack: superb!"])
        ),
        Review("The ending is great. Great ending", 5.0, 0),
        Review("A great ending, they say", 5.0, 1),
        *(Review("Great drama", 1.0, n) for n in range(4)),
    ),
    "f": (
        *(Review(f"The soundtrack is wonderful {n}", None, n) for n in range(3)),
        *(Review("The plot is not great", 4.0, n) for n in range(4)),
        *(Review("A great pace and a terrible pace", 4.0, n) for n in range(4)),
    ),
}
PRAISE = [
    ("h", "Reviews praise the soundtrack of Heat.", None),
    ("h", "Praised in reviews for its soundtrack: Heat.", None),
    ("h", "Like Fargo, Heat is praised in reviews for its soundtrack.", None),
    ("h", "Reviews praise the soundtrack of both Fargo and Heat, and you liked the first one.", None),
    ("h", "Because you liked Fargo, try Heat, which reviews also praise for its soundtrack.", None),
    ("h", "Because you bought Fargo, try Heat, which reviews also praise for its soundtrack.", "act: bought"),
    ("h", "Reviews praise the soundtrack and ending of Heat.", "praise: ending"),  # two writers alone
    ("h", "Reviews praise the drama of Heat.", "praise: drama"),  # rated 1 of 5
    ("h", "Reviews praise the crime of Heat.", "praise: crime"),  # a genre, in no review
    ("h", "Like Fargo, Heat is praised in reviews for its plot.", "praise: plot"),
    ("h", "Reviews praise Heat.", "praise of nothing"),
    ("h", "Critics applaud Heat.", "praise of nothing"),
    ("f", "Reviews praise the plot of Fargo.", "praise: plot"),
    ("f", "Reviews praise the pace of Fargo.", "praise: pace"),
    ("b", "Reviews praise the soundtrack of Blade Runner.", "praise: soundtrack"),
    ("h", "Reviews praise the soundtrack of Heat, the best crime pick.", "praise"),
]


@pytest.mark.parametrize(("item", "sentence", "why"), PRAISE)
def test_praise_is_held_against_the_raw_reviews(
    checker: SecondChecker, item: str, sentence: str, why: str | None
) -> None:
    users, items, types, values = (np.array(c, dtype=object) for c in zip(*ROWS, strict=True))
    log = EventLog(users, items, types.astype(np.uint8), values.astype(np.float32), np.arange(len(ROWS)) + 10**12)
    told = SecondChecker(ITEMS, log, reviews=SAID)
    assert told.wrong(sentence, user_id="u", item_id=item) == why
    assert checker.wrong(sentence, user_id="u", item_id=item) is not None, "without reviews no praise is true"
