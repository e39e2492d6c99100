"""Titles nobody would wish for, from the catalog to the sentence: quoted whole where harmless, else not at all."""

from pathlib import Path

import pytest
import xgrammar

from models.catalog import Item, ItemCatalog, write_catalog
from models.explain.checker import MAX_CHARS, check_reason
from models.explain.evidence import Evidence, build_evidence
from models.explain.explainer import ReasonWriter
from models.explain.generator import GeneratorError, ReasonRequest, ScriptedGenerator
from models.explain.grammar import readings_of, reason_grammar
from models.explain.open_grammar import open_grammar
from models.explain.positives import Positive, attributes_of
from models.explain.prompt import data_of
from models.explain.template import template_reason

TITLES = {
    "double quotes": 'The "Best" One',
    "single quotes": "It's 'Fine' Here",
    "backslash": "Back\\slash \\n \\u0041",
    "newlines": "Two\nLines\r\nand a\ttab",
    "grammar": 'x" | root ::= "y',
    "rule sign": "a ::= b",
    "emoji": "Cats 🐈‍⬛ and ☕ 👩‍👩‍👧",
    "only emoji": "🎬🎬",
    "500 characters": "Very long " * 50,
    "500 without a space": "A" * 500,
    "right to left": "\u202eevil\u202c title",
    "zero width": "He\u200bat",
    "empty": "",
    "only spaces": "  \n ",
    "only digits": "1984",
    "everyday words": "What You See",
    "combining marks": "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334alg\u0321o",
}


def evidence_of(title: str, folder: Path) -> Evidence:
    """The evidence of an item and of a liked item with this title, as the request path builds it."""
    items = [
        Item("bad", title, labels={"genre": ("Crime", title[:40] or "Drama")}, numbers={"year": 1995.0}),
        Item("also", title + " two", labels={"genre": ("Crime",)}),
        Item("good", "Fargo", labels={"genre": ("Crime",)}),
    ]
    write_catalog(items, folder / "catalog.arrow")
    catalog = ItemCatalog(folder)
    positives = [
        Positive(row, quoted, "liked", attributes_of(catalog, row), 1.0)
        for row, quoted in ((1, "Also Seen"), (2, "Fargo"))
    ]
    return build_evidence(positives, 0, catalog=catalog, link=lambda a, b: 0.5)


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES.keys())
@pytest.mark.parametrize("language", ["en", "zh", "fr", "xx-YY"])
def test_every_sentence_about_it_is_short_plain_and_true(title: str, language: str, tmp_path: Path) -> None:
    evidence = evidence_of(title, tmp_path)
    written_in = "zh" if language == "zh" else "en"
    sentences = [template_reason(evidence, language), *list(readings_of(evidence, language))[::9]]
    for sentence in sentences:
        assert 0 < len(sentence) <= MAX_CHARS and "\n" not in sentence and "::=" not in sentence
        assert check_reason(sentence, evidence, language=written_in) == "ok", sentence
    for grammar in (reason_grammar(evidence, language), open_grammar(evidence, language)):
        xgrammar.Grammar.from_ebnf(grammar)
    assert all("\u202e" not in line and len(line) < 600 for line in data_of(evidence).splitlines())


async def test_a_grammar_that_does_not_compile_is_a_template_and_counted() -> None:
    def refuse(request: ReasonRequest) -> str:
        raise GeneratorError("ValueError: the grammar does not compile")

    writer = ReasonWriter(ScriptedGenerator(refuse))
    evidence = Evidence("Heat")
    reasons = [r async for r in writer.write([(0, evidence)])]
    assert [(r.source, r.fallback, r.text) for r in reasons] == [("template", "engine", template_reason(evidence))]
    assert (writer.stats.fallbacks["engine"], writer.stats.sources["template"]) == (1, 1)
