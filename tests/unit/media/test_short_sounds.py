"""A catalog with a sound that its model cannot take: the job counts it as unread, within what the settings allow."""

import tempfile
import wave
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.catalog import CATALOG_FILE, Item, write_catalog
from models.encoder import HashEncoder
from models.media.items import load_item_encoder
from models.media.settings import MediaSettings, ModalitySettings
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import BlockError, EncoderSpec
from pipelines.embedding.runners import InlineRunner


def test_a_sound_that_is_too_short_is_counted_and_the_others_are_embedded(audio_model, media_root, tmp_path) -> None:
    with wave.open(str(media_root / "click.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.full(5, 9, "<i2").tobytes())
    of = ModalitySettings(uri="wav2vec2", dimension=16, weight=0.4)
    settings = MediaSettings(audio=of, roots=(str(media_root),))
    artifacts = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    sounds = ("s0.wav", "click.wav", "s1.wav", "")
    items = [Item(f"i{n}", f"Song {n}", media={"audio": s} if s else {}) for n, s in enumerate(sounds)]
    write_catalog(items, _folder(tmp_path / "made") / CATALOG_FILE)
    catalog = artifacts.get(artifacts.put("catalog", tmp_path / "made", {}))
    runner = InlineRunner(partial(load_item_encoder, partial(HashEncoder, 32), {"audio": audio_model}, settings))
    spec = EncoderSpec("hash", media=(("audio", "wav2vec2", 16, 0.4),))
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(BlockError, match=r"^1 pictures and sounds .*max_unread_media = 0"):
            Embedder(artifacts, spec, runner).embed(catalog, Path(folder))
        assert [what for what, _ in runner.unread] == ["click.wav"]
        facts = Embedder(artifacts, spec, runner, max_unread=1).embed(catalog, Path(folder))
    assert facts["media"] == {"audio": {"named": 3, "read": 2}}


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
