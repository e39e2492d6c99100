import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.titles import display_title, split_year


@pytest.mark.parametrize(
    ("given_title", "shown"),
    [
        ("African Queen, The (1951)", "The African Queen"),
        ("Fish Called Wanda, A", "A Fish Called Wanda"),
        ("Ideal Husband, An (1999)", "An Ideal Husband"),
        ("Postino, Il", "Il Postino"),
        ("Misérables, Les", "Les Misérables"),
        ("Boot, Das (Boat, The) (1981)", "Das Boot (The Boat)"),
        ("Mariachi, El (1992)", "El Mariachi"),
        ("Star Maker, The (Uomo delle stelle, L')", "The Star Maker (L'Uomo delle stelle)"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Lost World: Jurassic Park, The", "The Lost World: Jurassic Park"),
        ("Macbeth (a.k.a. Tragedy of Macbeth, The) (1971)", "Macbeth (a.k.a. The Tragedy of Macbeth)"),
        ("To Wong Foo, Thanks for Everything! Julie Newmar", "To Wong Foo, Thanks for Everything! Julie Newmar"),
        ("Paris, France", "Paris, France"),
        ("Monsters, Inc. (2001)", "Monsters, Inc."),
        ("The Terminator", "The Terminator"),
        ("1984", "1984"),
        ("(500) Days of Summer (2009)", "(500) Days of Summer"),
        ("Land Before Time III (1995) (V)", "Land Before Time III"),
    ],
)
def test_a_catalogue_title_becomes_what_a_person_would_write(given_title: str, shown: str) -> None:
    assert display_title(given_title) == shown


def test_the_year_is_split_off_with_its_variants() -> None:
    assert split_year("Heat (1995)") == ("Heat", 1995)
    assert split_year("Death Note (2006–2007) ") == ("Death Note", 2006)
    assert split_year("Pocahontas II (1998) (V)") == ("Pocahontas II", 1998)
    assert split_year("2001: A Space Odyssey") == ("2001: A Space Odyssey", None)
    assert split_year("(1984)") == ("(1984)", None)


@given(st.text(st.sampled_from("ab ,()'The195"), min_size=1, max_size=30))
def test_no_letter_of_a_title_is_lost(title: str) -> None:
    bare, _ = split_year(" ".join(title.split()))
    assert sorted(display_title(title).replace(" ", "").replace(",", "")) == sorted(
        bare.replace(" ", "").replace(",", "")
    )
