"""Real models of image and audio architectures, tiny and with random weights, saved as transformers folders."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-tower model (CLIP) whose pictures become 24 numbers."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 99},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(str(folder))
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def audio_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speech model (wav2vec 2.0) whose sounds become 16 numbers."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        conv_dim=(32, 32),
        conv_stride=(8, 8),
        conv_kernel=(8, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    folder = tmp_path_factory.mktemp("wav2vec2")
    Wav2Vec2Model(config).save_pretrained(str(folder))
    Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(str(folder))
    return folder


@pytest.fixture
def media_root(tmp_path: Path) -> Path:
    """Ten pictures p0.png to p9.png, two sounds s0.wav and s1.wav, and a file that is neither."""
    root = tmp_path / "media"
    root.mkdir()
    rng = np.random.default_rng(0)
    for n in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((64, 48), Image.Resampling.BILINEAR).save(root / f"p{n}.png")
    for n in range(2):
        with wave.open(str(root / f"s{n}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            tone = np.sin(np.arange(16_000) * (n + 1) / 9)
            file.writeframes((tone * 20_000).astype("<i2").tobytes())
    (root / "neither").write_bytes(b"neither")
    return root
