"""Frames: the sentences a reason may be, as data, and what of an evidence record each of them may say.

A frame is text with slots `{liked}` and choices `[may|might]`; a choice may hold slots and may be empty. The
grammar turns every slot and choice into alternatives; the template takes one of each. One table per language.
`scenes_of` splits a record into scenes: one set of facts that are true *together* (an attribute is only offered
beside the titles that really share it). Knows nothing of engines; called by grammar and template.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import ModuleType

from models.explain import frames_en, frames_zh
from models.explain.evidence import Evidence, Liked
from models.explain.positives import Attribute

MAX_CHARS = 240
LANGUAGES: Mapping[str, ModuleType] = {"en": frames_en, "zh": frames_zh}

_LINKS = ("shared", "maker", "praised_too", "co_visited", "meaning")
_BY_VALUE = {"shared": "shared", "maker": "maker", "praised_too": "praised"}
"""Kinds of link that are there when their slot has a value."""
_CHOICE = re.compile(r"\[([^\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Scene:
    """Facts that are true together: which frames apply (`shape`) and the values that each slot may take."""

    shape: str
    values: Mapping[str, tuple[str, ...]]

    def options(self, text: str) -> list[str] | None:
        """Return every reading of a choice's option with its slots filled, or None when a slot has no value."""
        out = [""]
        for at, piece in enumerate(_SLOT.split(text)):
            fills = [piece] if at % 2 == 0 else list(self.values.get(piece, ()))
            if not fills:
                return None
            out = [o + f for o in out for f in fills]
        return out


def language_of(language: str) -> str:
    """Return the language reasons are written in: the one asked for, or English where we do not have it."""
    short = language.split("-")[0].casefold()
    return short if short in LANGUAGES else "en"


def shapes_of(language: str) -> Mapping[str, Sequence[str]]:
    """Return the frames of a language by shape."""
    frames: Mapping[str, Sequence[str]] = LANGUAGES[language_of(language)].FRAMES
    return frames


def scenes_of(evidence: Evidence, language: str = "en") -> list[Scene]:
    """Return the scenes of a record, strongest first; an empty record has the scene `nothing` alone."""
    words = LANGUAGES[language_of(language)]
    linked = _linked_scenes(evidence, words)
    # What reviews praise comes right behind the strongest link: further back it would never be drawn.
    scenes = linked[:1] + _praised_scenes(evidence, words) + linked[1:] + _own_scenes(evidence, words)
    return [s for s in scenes if s.shape in shapes_of(language)] or [Scene("nothing", {})]


def parts_of(frame: str, scene: Scene) -> list[tuple[str, ...]] | None:
    """Return the frame as a row of alternatives, or None when the scene cannot fill it.

    Each element lists the readings of one stretch of text; a sentence takes one reading of each.
    """
    parts: list[tuple[str, ...]] = []
    for at, piece in enumerate(_CHOICE.split(frame)):
        if at % 2:
            readings = [r for option in piece.split("|") for r in scene.options(option) or ()]
            if not readings:
                return None
            parts.append(tuple(dict.fromkeys(readings)))
        else:
            for also, text in enumerate(_SLOT.split(piece)):
                values = scene.values.get(text, ()) if also % 2 else (text,)
                if not values:
                    return None
                if values != ("",):
                    parts.append(tuple(values))
    return parts if sum(max(map(len, p)) for p in parts) <= MAX_CHARS else None


def drawn(options: Iterable[str], seed: str) -> list[str]:
    """Return `options` in an order that depends on `seed` alone (equal in every process)."""
    return sorted(options, key=lambda option: hashlib.blake2b(f"{seed}/{option}".encode(), digest_size=8).digest())


def _linked_scenes(evidence: Evidence, words: ModuleType) -> list[Scene]:
    """One group per liked title and one for the two strongest together, one scene per kind of link."""
    groups: list[tuple[Liked, ...]] = [(liked,) for liked in evidence.liked]
    if len(evidence.liked) > 1 and evidence.liked[0].taken == evidence.liked[1].taken:
        groups.insert(1, evidence.liked[:2])
    return [scene for group in groups for scene in _scenes_of_group(group, evidence, words)]


def _scenes_of_group(group: tuple[Liked, ...], evidence: Evidence, words: ModuleType) -> list[Scene]:
    shared = [a for a in group[0].shared if all(a in other.shared for other in group)]
    how = [h for h in group[0].how if all(h in other.how for other in group)]
    titles = words.AND.join(_quoted(liked.title, words) for liked in group)
    values = {
        "liked": (titles,),
        "one": (titles,) if len(group) == 1 else (),
        "verb": words.VERBS.get(group[0].taken, ()),
        "item": (_quoted(evidence.item, words),) if evidence.item else (),
        "shared": _combined([a for a in shared if a.kind == "genre"], words),
        "maker": tuple(words.speak(a) for a in shared if a.kind == "maker"),
        "praised": _combined([a for a in shared if a.kind == "aspect"], words) if len(group) == 1 else (),
    }
    shapes = [s for s in _LINKS if (values[_BY_VALUE[s]] if s in _BY_VALUE else s in how)]
    return [Scene(shape, values) for shape in shapes]


def _praised_scenes(evidence: Evidence, words: ModuleType) -> list[Scene]:
    """The scene of what the item's reviews praise, whoever it is shown to."""
    praised = _combined(evidence.praised, words)
    item = (_quoted(evidence.item, words),) if evidence.item else ()
    return [Scene("praised", {"item": item, "praised": praised})] if praised else []


def _own_scenes(evidence: Evidence, words: ModuleType) -> list[Scene]:
    """Scenes about the item alone; a popular item of a user with links is explained by the links."""
    traits = _combined([a for a in evidence.attributes if a.kind == "genre"], words)
    values = {
        "item": (_quoted(evidence.item, words),) if evidence.item else (),
        "traits": traits,
        "plain": tuple(t for t in traits if words.is_plain(t)),
        "year": (str(evidence.year),) if evidence.year else (),
    }
    if "again" in evidence.claims:
        return [Scene("again", values)]
    if evidence.liked:
        return []
    own = [Scene(claim, values) for claim in evidence.claims]
    return own + ([Scene("traits", values)] if traits else [])


def _combined(attributes: Sequence[Attribute], words: ModuleType) -> tuple[str, ...]:
    """Every attribute alone, every pair, and all three."""
    spoken = [words.speak(a) for a in attributes[:3]]
    pairs = [words.AND.join(p) for p in combinations(spoken, 2)]
    triple = [words.AND.join((words.LIST.join(spoken[:2]), spoken[2]))] if len(spoken) == 3 else []
    return tuple(dict.fromkeys((*spoken, *pairs, *triple)))


def _quoted(title: str, words: ModuleType) -> str:
    return f"《{title}》" if words is frames_zh else title
