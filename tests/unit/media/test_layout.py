"""Late fusion: what lacks a picture is compared by its text alone, and everything stands on one scale."""

import numpy as np
import pytest

from models.media.layout import Layout, Part

LAYOUT = Layout(8, (Part("image", 12, 0.3), Part("audio", 5, 0.2)))
ALL, IMAGE, AUDIO, NONE = range(4)


def unit(rng, rows: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    text, image, audio = (unit(rng, 4, n) for n in (8, 12, 5))
    image[[AUDIO, NONE]] = 0
    audio[[IMAGE, NONE]] = 0
    return text, image, audio


@pytest.fixture
def vectors(parts):
    text, image, audio = parts
    return LAYOUT.joined(text, {"image": image, "audio": audio})


def test_every_item_has_unit_length_and_the_same_dimension(vectors) -> None:
    assert vectors.shape == (4, LAYOUT.dimension) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_similarity_is_the_weighted_mean_over_what_both_have_and_the_text_has_the_rest(parts, vectors) -> None:
    text, image, audio = parts
    scores = LAYOUT.asked(vectors) @ vectors.T
    for one in range(4):
        for other in range(4):
            by_image, by_audio = image[one].any() and image[other].any(), audio[one].any() and audio[other].any()
            rest = 1.0 - 0.3 * by_image - 0.2 * by_audio
            expected = rest * text[one] @ text[other]
            expected += 0.3 * by_image * image[one] @ image[other] + 0.2 * by_audio * audio[one] @ audio[other]
            assert scores[one, other] == pytest.approx(expected, abs=1e-5)


def test_an_item_without_a_picture_scores_as_by_text_alone(parts, vectors) -> None:
    text = parts[0]
    assert np.allclose(LAYOUT.asked(vectors) @ vectors[NONE], text @ text[NONE], atol=1e-6)
    assert np.allclose(LAYOUT.asked(vectors[NONE : NONE + 1]) @ vectors.T, text[NONE] @ text.T, atol=1e-6)


def test_a_query_of_text_sees_texts_alone_in_every_item(parts, vectors) -> None:
    text = parts[0]
    query = unit(np.random.default_rng(1), 1, 8)[0]
    assert np.allclose(vectors @ LAYOUT.query(query), text @ query, atol=1e-6)


def test_a_live_item_known_by_text_is_an_item_without_pictures(parts, vectors) -> None:
    assert np.array_equal(LAYOUT.item(parts[0][NONE]), vectors[NONE])


def test_a_vector_says_which_modalities_it_holds(vectors) -> None:
    assert LAYOUT.has(vectors, "image").tolist() == [True, True, False, False]
    assert LAYOUT.has(vectors, "audio").tolist() == [True, False, True, False]
    assert not LAYOUT.has(vectors, "smell").any()


def test_a_layout_survives_its_manifest_and_nonsense_is_refused() -> None:
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT
    assert Layout.from_json(None) is None
    for wrong in ({}, {"text": 8, "parts": []}, {"text": 0, "parts": [["image", 4, 0.1]]}, {"text": 8, "parts": [[1]]}):
        with pytest.raises(ValueError, match="layout"):
            Layout.from_json(wrong)
    with pytest.raises(ValueError, match="nothing to the text"):
        Layout.from_json({"text": 8, "parts": [["image", 4, 1.0]]})
