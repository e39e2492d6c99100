"""Reading ease by Flesch's formula, and reference facts by content words."""

import pytest

from loadtests.bench.readability import content, covered, reading_ease, stem, syllables


@pytest.mark.parametrize(
    ("word", "count"),
    [("the", 1), ("make", 1), ("table", 2), ("liked", 1), ("wanted", 2), ("reading", 2), ("comedy", 3), ("you", 1)],
)
def test_syllables_are_counted_by_vowel_groups(word: str, count: int) -> None:
    assert syllables(word) == count


def test_the_formula_gives_what_flesch_s_gives() -> None:
    # Six words of one syllable in one sentence.
    assert reading_ease("The cat sat on the mat.") == pytest.approx(206.835 - 1.015 * 6 - 84.6)
    assert reading_ease("1984!") is None


def test_longer_words_and_sentences_read_harder() -> None:
    easy = "You liked Heat. Try Fargo."
    hard = "Considering your demonstrated appreciation of cinematography, investigating Fargo is recommendable."
    assert (reading_ease(easy) or 0) > (reading_ease(hard) or 0) + 50


def test_facts_are_content_words_in_any_of_their_common_forms() -> None:
    facts = content("The user would enjoy the thrilling stories of romance.")
    assert facts == {stem("thrill"), stem("story"), stem("romance")}
    assert covered(facts, "A romance with thrills.") == pytest.approx(2 / 3)
    assert covered(facts, "Nothing of it.") == 0.0
    assert covered(frozenset(), "Anything.") is None


def test_a_sentence_without_content_names_no_fact() -> None:
    assert content("You may like it because you liked this.") == frozenset()
