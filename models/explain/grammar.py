"""From an evidence record to a closed grammar: every sentence the model may write, and no other.

The text is EBNF as xgrammar reads it. Titles, attributes, claims and connectives are all alternatives; there is no
character class anywhere. The evidence hash draws a few frames and a few readings of each choice, so that a small
model at temperature 0 does not open every reason with the same words. Called by the generator and by tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from models.explain.evidence import Evidence, evidence_hash
from models.explain.frames import drawn, parts_of, scenes_of, shapes_of
from models.explain.template import template_reason

FRAMES_PER_REASON = 3
"""Few on purpose: a small model at temperature 0 always takes its favourite, so variety is what the hash leaves it."""

_SCENES = 4


def reason_grammar(evidence: Evidence, language: str = "en") -> str:
    """Return the EBNF of all reasons that this record allows, each at most 240 characters."""
    rules = [" ".join(_alternatives(part) for part in _joined(parts)) for parts in sentences_of(evidence, language)]
    names = [f"f{at}" for at in range(len(rules))]
    lines = [f"root ::= {' | '.join(names)}"] + [f"{n} ::= {r}" for n, r in zip(names, rules, strict=True)]
    return "\n".join(lines) + "\n"


def sentences_of(evidence: Evidence, language: str = "en") -> list[list[tuple[str, ...]]]:
    """Return the drawn frames as rows of alternatives; a sentence takes one reading of each."""
    seed = evidence_hash(evidence)
    shapes = shapes_of(language)
    frames = {
        f"{at}/{frame}": (scene, frame)
        for at, scene in enumerate(scenes_of(evidence, language)[:_SCENES])
        for frame in shapes[scene.shape]
    }
    sentences: list[list[tuple[str, ...]]] = []
    for name in drawn(frames, seed):
        scene, frame = frames[name]
        parts = parts_of(frame, scene)
        if parts is not None:
            sentences.append([_readings(part, f"{seed}{name}{at}") for at, part in enumerate(parts)])
        if len(sentences) == FRAMES_PER_REASON:
            break
    return sentences or [[(template_reason(evidence, language),)]]


def _readings(part: tuple[str, ...], seed: str) -> tuple[str, ...]:
    """Draw one or two readings of a choice."""
    count = 1 if drawn(("one", "two"), seed)[0] == "one" else 2
    return tuple(drawn(part, seed)[:count])


def readings_of(evidence: Evidence, language: str = "en") -> Iterator[str]:
    """Yield every sentence of the grammar; for tests and for looking at frames."""
    for parts in sentences_of(evidence, language):
        yield from ("".join(reading) for reading in product(*parts))


def quote(text: str) -> str:
    """Return `text` as an EBNF string literal; nothing in it can end the literal or start a rule."""
    out = []
    for char in text:
        if char in '"\\':
            out.append("\\" + char)
        elif char.isprintable():
            out.append(char)
        else:
            out.append(f"\\u{ord(char):04X}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08X}")
    return '"' + "".join(out) + '"'


def _joined(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Join neighbours that have one reading each."""
    out: list[tuple[str, ...]] = []
    for part in parts:
        if out and len(part) == 1 and len(out[-1]) == 1:
            out[-1] = (out[-1][0] + part[0],)
        else:
            out.append(part)
    return out


def _alternatives(part: tuple[str, ...]) -> str:
    return quote(part[0]) if len(part) == 1 else "(" + " | ".join(quote(p) for p in part) + ")"
