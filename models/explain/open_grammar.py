"""The `open` level for capable models: free words in a bounded number between slots that only the record can fill.

Titles, attributes and numbers are alternatives from the record, as at the closed level. Between them the model writes
words of its own choice, one after another, out of the plain words that claim nothing (`lexicon.plain_words`): what is
claimed stays in the fixed parts, and the checker decides on the whole. Called by the generator.
"""

from __future__ import annotations

from functools import lru_cache

from models.explain import lexicon
from models.explain.evidence import Evidence
from models.explain.frames import Scene, language_of, scenes_of
from models.explain.grammar import quote, reason_grammar

MOST_WORDS = 8
"""Words between two slots; with titles of at most 80 characters three gaps stay below 240 characters mostly."""
_SCENES = 3
_SENTENCES: dict[str, tuple[str, ...]] = {
    "linked": (
        '("Because you " | "Since you ") {verb} " " {liked} "," gap " " {item} tail',
        '"You " {verb} " " {liked} ", and" gap " " {item} tail',
    ),
    "seeded": ('{item} gap " " {liked} tail',),
    "own": ("{item} tail",),
}
"""The item's attributes may come up in a tail; `gap` and `tail` are free words."""


def open_grammar(evidence: Evidence, language: str = "en") -> str:
    """Return the EBNF of the open level; the closed one where there is no open one (Chinese, an empty record)."""
    scenes = [s for s in scenes_of(evidence, language)[:_SCENES] if s.values.get("item")]
    if language_of(language) != "en" or not scenes or scenes[0].shape in ("again", "trending", "popular", "new"):
        return reason_grammar(evidence, language)
    roots, rules = [], []
    for at, scene in enumerate(scenes):
        shape = "own" if "liked" not in scene.values else "linked" if scene.values.get("verb") else "seeded"
        for number, sentence in enumerate(_SENTENCES[shape]):
            roots.append(f"s{at}x{number}")
            rules.append(f"s{at}x{number} ::= {_filled(sentence, scene, at)}")
        rules += _tail(scene, at)
    words = " | ".join(quote(f" {word}") for word in plain_words())
    return "\n".join(
        [f"root ::= {' | '.join(roots)}", *rules, f"word ::= {words}", f"gap ::= word{{1,{MOST_WORDS}}}", ""]
    )


def _filled(sentence: str, scene: Scene, at: int) -> str:
    for slot in ("verb", "liked", "item"):
        values = scene.values.get(slot, ())
        sentence = sentence.replace(f"{{{slot}}}", "(" + " | ".join(quote(v) for v in values) + ")")
    return " ".join(f"tail{at}" if piece == "tail" else piece for piece in sentence.split(" "))


def _tail(scene: Scene, at: int) -> list[str]:
    """Return the end of a sentence: free words, with an attribute of the scene where it has one."""
    attributes = scene.values.get("shared") or scene.values.get("traits") or scene.values.get("maker") or ()
    if not attributes:
        return [f'tail{at} ::= gap "."']
    named = " | ".join(quote(f" {value}") for value in attributes)
    return [f'tail{at} ::= gap ({named}) word{{1,4}} "."']


@lru_cache(maxsize=1)
def plain_words() -> tuple[str, ...]:
    """Return the checker's words that say nothing which a record would have to back."""
    return tuple(sorted(word for word in lexicon.ENGLISH if not lexicon.claims_something(word)))
