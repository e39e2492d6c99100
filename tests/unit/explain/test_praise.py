"""What reviews praise in reasons: only of the item it is true of, only what the record holds, in both languages."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xgrammar

from loadtests.bench.second_checker import SecondChecker
from loadtests.bench.second_reviews import Acclaim
from models.catalog import REVIEWED, Item, ItemCatalog
from models.events import EventLog, EventType
from models.explain.aspects import MAX_REVIEWS, aspects_of, review_labels
from models.explain.checker import check_reason
from models.explain.evidence import Evidence, Liked, build_evidence, evidence_hash
from models.explain.evidence_json import evidence_from_json, evidence_to_json
from models.explain.frames import parts_of, scenes_of, shapes_of
from models.explain.grammar import readings_of, reason_grammar
from models.explain.open_grammar import open_grammar
from models.explain.positives import Attribute, Positive, attributes_of
from models.explain.prompt import data_of
from models.reviews import Review

CRIME = Attribute("Crime", "genre")
SOUND, PLOT = Attribute("soundtrack", "aspect"), Attribute("visual effects", "aspect")
TEXTS = Path(__file__).parents[4] / "shared" / "data" / "xrec-explanations"
FARGO = Liked("Fargo", "liked", ("co_visited", "shared", "meaning"), (CRIME, SOUND), 0.6)
HEAT = Evidence("Heat", (FARGO,), (CRIME, SOUND, PLOT))
ALONE = replace(HEAT, liked=())


def praises(evidence: Evidence, language: str) -> list[str]:
    """Every sentence of every frame that speaks of praise."""
    found = []
    for scene in scenes_of(evidence, language):
        for frame in shapes_of(language)[scene.shape] if scene.shape.startswith("praised") else ():
            found += ["".join(reading) for reading in product(*(parts_of(frame, scene) or [()]))]
    return [text for text in found if text]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("taken", ["liked", "bought", "viewed", "chosen", "seed"])
@pytest.mark.parametrize("item", ["Heat", "Up", ""])
def test_every_sentence_of_praise_passes_the_checker_and_names_an_aspect(language: str, taken: str, item: str) -> None:
    record = replace(HEAT, item=item, liked=(replace(FARGO, taken=taken),))  # type: ignore[arg-type]
    said = praises(record, language)
    assert len(said) > (10 if item else 2)
    for text in said:
        assert check_reason(text, record, language=language) == "ok", text
        assert "soundtrack" in text or "visual effects" in text
        # The same words about a record that lacks the praise, or about one that praises something else.
        plain = replace(record, attributes=(CRIME,), liked=(replace(record.liked[0], shared=(CRIME,)),))
        assert check_reason(text, plain, language=language) != "ok", text


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Reviews praise the soundtrack of Heat.", "ok"),
        ("Like Fargo, Heat is praised in reviews for its soundtrack.", "ok"),
        ("Like Fargo, Heat is praised in reviews for its visual effects.", "unbacked_attribute"),  # Fargo is not
        ("Reviews praise the visual effects of Fargo.", "unbacked_attribute"),
        ("Reviews praise the crime of Heat.", "unbacked_attribute"),  # a genre is no praise
        ("Reviews praise the crime and soundtrack of Heat.", "unbacked_attribute"),
        ("Because you liked Fargo, you may enjoy the soundtrack side of Heat.", "unbacked_attribute"),
        ("Heat has soundtrack appeal.", "unbacked_attribute"),
        ("Reviews praise Heat.", "unbacked_claim"),
        ("Praised Heat.", "unbacked_claim"),
        ("Reviews praise the dialogue of Heat.", "unknown_word"),
        ("Reviews do not praise the soundtrack of Heat.", "unknown_word"),
        ("Critics acclaim the soundtrack of Heat.", "unknown_word"),
        ("Reviews praise the soundtrack of Alien.", "foreign_title"),
        ("Because you bought Fargo, try Heat, which reviews also praise for its soundtrack.", "unbacked_liking"),
        ("Many reviews praise the soundtrack of Heat, a popular pick.", "unbacked_claim"),
    ],
)
def test_praise_that_the_record_does_not_hold_is_refused(text: str, verdict: str) -> None:
    assert check_reason(text, HEAT) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("评论称赞《Heat》的soundtrack。", "ok"),
        ("和《Fargo》一样,《Heat》的visual effects也受到评论称赞。", "unbacked_attribute"),
        ("评论称赞《Heat》的Crime。", "unbacked_attribute"),
        ("评论称赞《Heat》。", "unbacked_claim"),
        ("评论称赞《Heat》的dialogue。", "unknown_word"),
    ],
)
def test_chinese_praise_is_held_against_the_record_too(text: str, verdict: str) -> None:
    assert check_reason(text, HEAT, language="zh") == verdict


def test_a_genre_shared_is_no_praise_shared_though_both_have_one_name() -> None:
    drama = replace(HEAT, liked=(replace(FARGO, shared=(Attribute("Drama", "genre"),)),))
    drama = replace(drama, attributes=(Attribute("Drama", "genre"), Attribute("drama", "aspect")))
    assert check_reason("Reviews praise the drama of Heat.", drama) == "ok"
    assert check_reason("Like Fargo, Heat is praised in reviews for its drama.", drama) == "unbacked_attribute"
    assert check_reason("Because you liked Fargo, you may enjoy the drama side of Heat.", drama) == "ok"


def test_reasons_speak_of_praise_and_their_grammars_compile() -> None:
    for record in (HEAT, ALONE):
        said = {text for year in range(1950, 1990) for text in readings_of(replace(record, year=year))}
        assert any("praise" in text.casefold() for text in said)
        assert all(check_reason(text, replace(record, year=1950)) == "ok" for text in readings_of(record))
        for language in ("en", "zh"):
            xgrammar.Grammar.from_ebnf(reason_grammar(record, language))
        xgrammar.Grammar.from_ebnf(open_grammar(record))
    assert "Praised: soundtrack, visual effects" in data_of(ALONE) and "About: Crime\n" in data_of(ALONE)
    assert evidence_from_json(evidence_to_json(HEAT)) == HEAT
    assert evidence_hash(HEAT) != evidence_hash(replace(HEAT, attributes=(CRIME, SOUND)))
    assert HEAT.to_dict()["praised"] == ["soundtrack", "visual effects"] and HEAT.to_dict()["shared"] == ["Crime"]


def test_what_reviews_criticise_or_dispute_is_an_attribute_that_no_reason_may_hold() -> None:
    names = {"genre": ("Crime", "Action", "Drama"), REVIEWED["praised"]: ("soundtrack", "pace", "scenery")}
    worse = {REVIEWED["criticised"]: ("ending",), REVIEWED["disputed"]: ("plot",)}
    catalog = ItemCatalog.of([Item("h", "Heat", labels={**names, **worse}), Item("f", "Fargo", labels=names)])
    assert catalog.labels(0)[REVIEWED["criticised"]] == ("ending",)
    assert "ending" not in str(attributes_of(catalog, 0)) and "plot" not in str(attributes_of(catalog, 0))
    liked = [Positive(1, "Fargo", "liked", attributes_of(catalog, 1), 1.0)]
    record = build_evidence(liked, 0, catalog=catalog)
    assert [a.text for a in record.attributes] == ["Crime", "Action", "Drama", "soundtrack", "pace"]
    assert [a.text for a in record.liked[0].shared] == ["Crime", "Action", "Drama", "soundtrack", "pace"]
    assert "soundtrack" not in catalog.document(0) and "ending" not in catalog.document(0)
    assert catalog.documents(catalog.rows(["h"])) == [catalog.document(0)]


def test_praise_alone_links_no_items() -> None:
    praised = {REVIEWED["praised"]: ("soundtrack",)}
    catalog = ItemCatalog.of([Item("h", "Heat", labels=praised), Item("f", "Fargo", labels=praised)])
    liked = [Positive(1, "Fargo", "liked", attributes_of(catalog, 1), 1.0)]
    assert build_evidence(liked, 0, catalog=catalog).liked == ()


@pytest.mark.skipif(not TEXTS.is_dir(), reason=f"{TEXTS} is not there")
def test_on_real_texts_the_second_checker_agrees_with_all_praise_that_is_found() -> None:
    found = 0
    for file in sorted(TEXTS.glob("*_tst.jsonl")):
        rows = [json.loads(line)["explanation"] for line in file.read_text("utf-8").splitlines()]
        # Reference explanations, taken for reviews: what stands behind "because" is the item's praise.
        texts = [text.partition("because")[2] for text in rows]
        for start in range(0, len(texts), MAX_REVIEWS):
            said = tuple(Review(text, None, n) for n, text in enumerate(texts[start : start + MAX_REVIEWS]))
            praised = [a.text for a in aspects_of(said) if a.polarities[0] == "praised"]
            found += len(praised)
            assert [text for text in praised if not Acclaim({"x": said}).praised("x", text)] == []
    assert found >= 60


def test_the_second_checker_agrees_with_every_sentence_that_raw_reviews_give() -> None:
    def said(*texts: str) -> Sequence[Review]:
        return tuple(Review(text, 4.0, writer) for writer, text in enumerate(texts))

    praise = ("great", "the {} is truly excellent", "I loved the {}", "gorgeous {}", "What an awful cinema.")
    reviews = {
        item: said(*(f"{p} {t}." if "{}" not in p else p.format(t) for p in praise for t in ("soundtrack", "effects")))
        for item in ("h", "f")
    }
    judged = {"soundtrack": "praised", "effects": "praised"}
    items = [
        Item(i, t, labels={"genre": ("Crime",), **review_labels(judged, reviews[i])})  # type: ignore[arg-type]
        for i, t in (("h", "Heat"), ("f", "Fargo"))
    ]
    catalog = ItemCatalog.of(items)
    assert [a.kind for a in attributes_of(catalog, 0)] == ["genre", "aspect", "aspect"]
    columns = (
        (["u"], object),
        (["f"], object),
        ([EventType.rating], np.uint8),
        ([5.0], np.float32),
        ([10**12], np.int64),
    )
    log = EventLog(*(np.array(values, kind) for values, kind in columns))
    raw = [replace(item, labels={"genre": ("Crime",)}) for item in items]
    second = SecondChecker(raw, log, reviews={i: tuple(r) for i, r in reviews.items()})
    liked = [Positive(1, "Fargo", "liked", attributes_of(catalog, 1), 1.0)]
    record = build_evidence(liked, 0, catalog=catalog)
    sentences = praises(record, "en")
    assert len(sentences) > 50
    assert {text: why for text in sentences if (why := second.wrong(text, user_id="u", item_id="h"))} == {}
