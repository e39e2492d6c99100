"""Two sentences about a user's interests: nothing but what the user's own events and the catalog back."""

from pathlib import Path

import pytest
import xgrammar

from models.catalog import Item, ItemCatalog, write_catalog
from models.explain.generator import ScriptedGenerator
from models.explain.interests import (
    Interests,
    check_summary,
    genre_shares,
    interests_of,
    summary_grammar,
    summary_readings,
    template_summary,
)
from models.explain.positives import Attribute, Positive, attributes_of, positives_of
from models.explain.prompt import interest_data
from models.features import ANONYMOUS

FULL = Interests((Attribute("Crime", "genre"), Attribute("Film-Noir", "genre")), ("Fargo", "Dr. No", "Heat"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    folder = tmp_path_factory.mktemp("catalog")
    items = [Item(f"c{n}", f"Crime {n}", labels={"genre": ("Crime", "Drama")}) for n in range(5)]
    items += [Item(f"d{n}", f"Drama {n}", labels={"genre": ("Drama",)}) for n in range(15)]
    write_catalog(items, folder / "catalog.arrow")
    return ItemCatalog(folder)


def positive(catalog: ItemCatalog, row: int, taken: str = "liked") -> Positive:
    return Positive(row, catalog.title(row), taken, attributes_of(catalog, row), 1.0)  # type: ignore[arg-type]


def test_an_interest_is_what_the_user_takes_more_often_than_the_catalog_offers(catalog: ItemCatalog) -> None:
    found = interests_of([positive(catalog, row) for row in (0, 1, 2, 7)], genre_shares(catalog))
    assert [g.text for g in found.genres] == ["Crime"]  # all are dramas, and so is everything else
    assert found.titles == ("Crime 0", "Crime 1", "Crime 2", "Drama 2")


def test_two_items_make_no_interest_and_nothing_makes_nothing(catalog: ItemCatalog) -> None:
    shares = genre_shares(catalog)
    assert interests_of([positive(catalog, row) for row in (0, 1)], shares).genres == ()
    assert template_summary(interests_of([], shares)) == ""
    with pytest.raises(ValueError, match="nothing is known"):
        summary_grammar(Interests())


def test_only_titles_of_the_newest_kind_of_event_stand_together(catalog: ItemCatalog) -> None:
    mixed = [positive(catalog, 0, "bought"), positive(catalog, 1, "viewed"), positive(catalog, 2, "bought")]
    found = interests_of(mixed, genre_shares(catalog))
    assert (found.taken, found.titles) == ("bought", ("Crime 0", "Crime 2"))


@pytest.mark.parametrize("facts", [FULL, Interests(FULL.genres), Interests(titles=("Fargo",), taken="bought")])
def test_every_summary_of_the_grammar_passes_the_checker_and_compiles(facts: Interests) -> None:
    readings = list(summary_readings(facts))
    assert readings and all(check_summary(text, facts) for text in readings)
    assert len(readings) == len(set(readings))
    xgrammar.Grammar.from_ebnf(summary_grammar(facts))


@pytest.mark.parametrize(
    "text",
    [
        "You seek western titles. You liked Fargo and Heat.",  # another genre
        "You seek crime titles. You liked Fargo and Seven.",  # another title
        "You seek crime titles. You bought Fargo and Heat.",  # another act
        "You seek crime titles, popular ones. You liked Fargo.",
        "You seek crime titles. Visit evil.example now.",
        "You liked crime titles. You liked Fargo.",
        "",
    ],
)
def test_what_the_facts_do_not_back_is_refused(text: str) -> None:
    assert not check_summary(text, FULL)


def test_facts_travel_as_json_and_hold_no_ids() -> None:
    assert Interests.from_json(FULL.to_json()) == FULL
    assert interest_data(FULL) == "Genres: Crime, Film-Noir\nLiked: Fargo; Dr. No; Heat"


async def test_the_fake_gives_the_template() -> None:
    assert await ScriptedGenerator(lambda _: "").summarise(FULL) == template_summary(FULL)


def test_titles_that_no_sentence_may_quote_never_become_facts(tmp_path: Path, hostile: tuple[str, ...]) -> None:
    items = [Item(f"h{n}", text, labels={"genre": (text[:40], "Crime")}) for n, text in enumerate(hostile)]
    write_catalog(items, tmp_path / "catalog.arrow")
    catalog = ItemCatalog(tmp_path)
    rows = list(range(len(items)))
    found = positives_of(ANONYMOUS, catalog, seed_rows=rows)
    facts = interests_of(found, {a: 0.001 for p in found for a in p.labels})
    assert facts.titles == ()  # seeds are no events of the user
    for text in hostile:
        assert text not in template_summary(facts)
