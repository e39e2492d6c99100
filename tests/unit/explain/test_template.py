"""Templates: one true, short sentence for every record, without a model."""

from dataclasses import replace

import pytest

from models.explain.evidence import EMPTY, Evidence, Liked
from models.explain.frames import language_of, parts_of, scenes_of, shapes_of
from models.explain.positives import Attribute
from models.explain.template import template_reason

CRIME, THRILLER = Attribute("Crime", "genre"), Attribute("Thriller", "genre")
ASPECT = Attribute("soundtrack", "aspect")
FARGO = Liked("Fargo", "liked", ("co_visited", "shared", "meaning"), (CRIME, THRILLER), 0.6)
SEVEN = Liked("Seven", "liked", ("shared",), (CRIME,), 0.4)
HEAT = Evidence("Heat", (FARGO, SEVEN), (CRIME, THRILLER), 1995, "sequential", ())


def test_an_empty_record_claims_nothing_personal() -> None:
    text = template_reason(EMPTY)
    assert text and "you liked" not in text.lower() and "because" not in text.lower()


def test_the_same_record_gives_the_same_sentence_and_records_vary_it() -> None:
    many = {template_reason(Evidence(f"Heat {n}", (FARGO,), (CRIME,))).replace(f"Heat {n}", "*") for n in range(60)}
    assert template_reason(HEAT) == template_reason(HEAT)
    assert len(many) >= 8


def test_an_unsupported_language_is_answered_in_english() -> None:
    assert language_of("fr") == "en" and language_of("zh-CN") == "zh" and language_of("EN-us") == "en"
    assert template_reason(HEAT, "fr") == template_reason(HEAT, "en")


def test_chinese_reasons_quote_titles_in_their_marks() -> None:
    assert "《Fargo》" in template_reason(HEAT, "zh") or "《Seven》" in template_reason(HEAT, "zh")


def test_very_long_titles_still_give_a_sentence_of_at_most_240_characters() -> None:
    long = Liked("L" * 80, "liked", ("shared",), (Attribute("A" * 40, "genre"), Attribute("B" * 40, "genre")), 0.1)
    for language in ("en", "zh"):
        text = template_reason(Evidence("I" * 80, (long, long), long.shared), language)
        assert 0 < len(text) <= 240


@pytest.mark.parametrize("shape", ["shared", "maker", "co_visited", "meaning", "again", "trending", "popular", "new"])
def test_every_common_shape_has_at_least_eight_frames(shape: str) -> None:
    assert len(shapes_of("en")[shape]) >= 8


def test_every_frame_can_be_filled_by_some_scene() -> None:
    maker = Attribute("Bosch", "maker")
    rich = Liked("Fargo", "liked", ("co_visited", "shared", "meaning"), (CRIME, maker), 0.6)
    records = [
        Evidence("Heat", (rich,), (CRIME, maker), 1995),
        Evidence("Heat", (), (CRIME,), 1995, None, ("popular", "trending", "new")),
        Evidence("Heat", (rich,), (CRIME,), 1995, None, ("again",)),
        Evidence("Heat", (replace(rich, how=("co_visited",), shared=(ASPECT,)),), (CRIME, ASPECT)),
        EMPTY,
    ]
    for language in ("en", "zh"):
        scenes = [s for record in records for s in scenes_of(record, language)]
        for shape, frames in shapes_of(language).items():
            for frame in frames:
                assert any(s.shape == shape and parts_of(frame, s) for s in scenes), (language, frame)


def test_an_attribute_is_only_offered_beside_titles_that_share_it() -> None:
    for scene in scenes_of(HEAT):
        if "Seven" in scene.values["liked"][0]:
            assert scene.values["shared"] == ("crime",)


def test_a_seed_item_gives_a_sentence_that_does_not_say_the_user_liked_it() -> None:
    for n in range(60):
        seed = Liked(f"Fargo {n}", "seed", ("shared",), (CRIME,), 0.6)
        assert "you liked" not in template_reason(Evidence("Heat", (seed,), (CRIME,)))
