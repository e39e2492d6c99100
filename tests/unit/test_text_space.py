"""Which encoder a release's vectors are of, where it comes from, and what may be compared with them."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from models.artifacts import ArtifactError
from models.declared import Declaration
from models.encoder import HashEncoder
from models.features import UserFeatures
from models.hub import HubError
from models.intent import encoder_tag
from models.text_space import EncoderPlace, EncoderShelf, TextSpace

UNIT = np.array([0.6, 0.8], np.float32)


@pytest.mark.parametrize(
    ("of", "settings", "tag", "compares"),
    [
        ("a", "a", encoder_tag("a"), True),
        ("a", "a", encoder_tag("b"), False),
        ("a", "a", b"", True),
        ("b", "a", b"", False),
        ("b", None, b"", True),
        (None, "a", b"", True),
        (None, "a", encoder_tag("a"), False),
    ],
)
def test_a_vector_is_compared_with_those_of_its_own_encoder(of: str | None, settings, tag: bytes, compares) -> None:
    meta = {"inputs": {} if of is None else {"encoder": of, "max_tokens": 64}}
    space = TextSpace.of(meta, 2, untagged=settings, shelf=None)
    assert space.compares(tag) is compares and space.max_tokens == (128 if of is None else 64)
    user = UserFeatures(intent=UNIT, intent_tag=tag, declared=Declaration((("genre", "Drama"),), UNIT, 7, tag))
    found = space.understood(user)
    assert found.declared is not None and found.declared.labels == (("genre", "Drama"),)
    assert (found.intent is not None, found.declared.vector is not None) == (compares, compares)


def test_who_brings_no_vectors_comes_back_as_they_are() -> None:
    user = UserFeatures(declared=Declaration((("genre", "Drama"),), None, 7))
    assert TextSpace("a", untagged=False).understood(user) is user


def test_a_shelf_loads_an_encoder_once_and_lets_it_go_with_the_last_who_holds_it() -> None:
    loaded: list[tuple[str, int]] = []

    def load(uri: str, max_tokens: int) -> HashEncoder:
        loaded.append((uri, max_tokens))
        return HashEncoder(2)

    shelf = EncoderShelf(load)
    spaces = [
        TextSpace("a", 128, 2, shelf=shelf),
        TextSpace("a", 128, 2, shelf=shelf),
        TextSpace("a", 64, 2, shelf=shelf),
    ]
    assert spaces[0].encoder is spaces[1].encoder is not spaces[2].encoder
    assert loaded == [("a", 128), ("a", 64)] and len(shelf) == 2
    del spaces[:2]
    gc.collect()
    assert len(shelf) == 1


def test_a_space_that_nobody_embeds_for_has_no_encoder() -> None:
    for space in (TextSpace("a"), TextSpace(None, shelf=EncoderShelf(lambda *_: HashEncoder(2)))):
        with pytest.raises(ArtifactError, match="by which encoder"):
            _ = space.encoder


def test_an_encoder_place_takes_what_was_fetched_and_resolves_anything_else(tmp_path, monkeypatch) -> None:
    place, seen = EncoderPlace("hf://a/b@c", tmp_path / "fetched", tmp_path / "cache"), list[Any]()
    monkeypatch.setattr("models.encoder.SentenceTransformerEncoder", lambda folder, max_tokens: seen.append(folder))
    (tmp_path / "mine").mkdir()
    place.load("hf://a/b@c", 128)
    place.load(str(tmp_path / "mine"), 128)
    assert seen == [place.folder, (tmp_path / "mine").resolve()]
    with pytest.raises(HubError, match="no such file"):
        place.load(str(tmp_path / "nothing"), 128)
