"""The open level: free words claim nothing, and everything that names a thing comes from the record."""

import random
import re
from pathlib import Path

import pytest
import xgrammar

from models.explain import lexicon
from models.explain.checker import check_reason
from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.generator import model_of
from models.explain.grammar import reason_grammar
from models.explain.open_grammar import open_grammar, plain_words
from models.explain.positives import Attribute

CRIME, ACTION = Attribute("Crime", "genre"), Attribute("Action", "genre")
LINKED = Evidence("Heat", (Liked("Fargo", "liked", ("shared",), (CRIME,), 0.6),), (CRIME, ACTION), 1995)
OWN = Evidence("Heat", attributes=(CRIME,))


def sampled(grammar: str, rng: random.Random) -> str:
    """Walk the grammar at random, by a reader of EBNF of our own."""
    rules = dict(line.split(" ::= ", 1) for line in grammar.strip().splitlines())

    def expand(text: str) -> str:
        options = split(text, "|")
        return "".join(element(part) for part in split(rng.choice(options), " "))

    def element(part: str) -> str:
        if part.startswith('"'):
            return re.sub(r"\\(.)", r"\1", part[1:-1])
        if part.startswith("("):
            return expand(part[1:-1])
        name, _, bounds = part.partition("{")
        low, high = map(int, bounds[:-1].split(",")) if bounds else (1, 1)
        return "".join(expand(rules[name]) for _ in range(rng.randint(low, high)))

    def split(text: str, separator: str) -> list[str]:
        parts, depth, quoted, current = [], 0, False, ""
        for at, char in enumerate(text):
            quoted ^= char == '"' and text[at - 1] != "\\"
            depth += 0 if quoted else (char == "(") - (char == ")")
            if char == separator and not quoted and not depth:
                parts.append(current.strip())
                current = ""
            else:
                current += char
        return [p for p in [*parts, current.strip()] if p]

    return expand(rules["root"])


@pytest.mark.parametrize("evidence", [LINKED, OWN], ids=["linked", "own"])
def test_whatever_the_words_say_the_titles_and_attributes_are_the_record_s(evidence: Evidence) -> None:
    rng, grammar = random.Random(7), open_grammar(evidence)
    xgrammar.Grammar.from_ebnf(grammar)
    known = {*lexicon.ENGLISH, "because", "since", "heat", "fargo", "crime", "action"}
    verdicts = []
    for _ in range(300):
        sentence = sampled(grammar, rng)
        assert "Heat" in sentence and {w.casefold() for w in re.findall(r"[A-Za-z-]+", sentence)} <= known
        verdicts.append(check_reason(sentence, evidence))
    assert set(verdicts) <= {"ok", "unbacked_attribute", "unbacked_claim", "too_long", "repeated"}
    assert verdicts.count("ok") > 200  # random words; what claims something by chance is the checker's to refuse


def test_the_free_words_claim_nothing_alone() -> None:
    for word in plain_words():
        assert not lexicon.claims_of(word, "en") and not lexicon.said_verbs(f"you {word}", "en")
    assert {"a", "the", "its"} <= set(plain_words()) and not {"popular", "new", "people", "liked"} & set(plain_words())


@pytest.mark.parametrize(
    ("evidence", "language"),
    [(EMPTY, "en"), (LINKED, "zh"), (Evidence("Heat", claims=("popular",)), "en"), (Evidence("", LINKED.liked), "en")],
)
def test_where_there_is_nothing_to_be_free_about_the_closed_level_stands(evidence: Evidence, language: str) -> None:
    assert open_grammar(evidence, language) == reason_grammar(evidence, language)


def test_hostile_titles_stay_literals(hostile: tuple[str, ...]) -> None:
    for text in hostile:
        evidence = Evidence(text, (Liked(text + "!", "liked", ("shared",), (CRIME,), 0.6),), (CRIME,))
        xgrammar.Grammar.from_ebnf(open_grammar(evidence))


def test_reasons_of_one_level_are_not_found_by_the_other() -> None:
    assert model_of(Path("m")) == "m" and model_of(Path("m"), "open") == "m+open"
