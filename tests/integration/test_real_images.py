"""The image path with a real pretrained encoder (EfficientNet-Lite0 from the package index) and real photographs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.hub import IMAGE_ENCODER_URI, resolve_encoder
from models.media.encoders import MediaEncoder
from models.media.settings import MediaSettings, ModalitySettings

pytestmark = pytest.mark.timeout(300)
DAISY = 985
BUILDINGS = {442, 449, 483, 663, 698}
"""Classes of ImageNet: bell cote, boathouse, castle, monastery, palace."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def folder(cache) -> Path:
    return resolve_encoder(IMAGE_ENCODER_URI, cache=cache)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """A flower and a palace, and parts of both, as files."""
    from sklearn.datasets import load_sample_image

    root = tmp_path_factory.mktemp("photographs")
    for name in ("flower", "china"):
        photograph = Image.fromarray(load_sample_image(f"{name}.jpg"))
        photograph.save(root / f"{name}.png")
        photograph.crop((100, 50, 500, 400)).save(root / f"{name}-part.jpg", quality=80)
    return root


@pytest.fixture(scope="module")
def vectors(folder, photographs) -> np.ndarray:
    encoder = MediaEncoder(
        "image", folder, MediaSettings(roots=(str(photographs),)), ModalitySettings(uri=IMAGE_ENCODER_URI)
    )
    names = ["flower.png", "china.png", "flower-part.jpg", "china-part.jpg"]
    found = encoder.encode(names)
    assert encoder.take_unread() == []
    return found


def test_only_safetensors_and_json_are_left_to_load(folder) -> None:
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}


def test_a_part_of_a_photograph_is_nearest_to_the_whole(vectors) -> None:
    assert vectors.shape == (4, 1280) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T
    assert similar[0, 2] > 0.75 and similar[1, 3] > 0.75
    assert max(similar[0, 1], similar[0, 3], similar[2, 1], similar[2, 3]) < 0.4


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_a_large_photograph_that_is_held_small_means_the_same(folder, photographs, monkeypatch, form) -> None:
    names = []
    for name in ("flower", "china"):
        with Image.open(photographs / f"{name}.png") as photograph:
            large = photograph.resize((3200, 2135), Image.Resampling.LANCZOS)
        large.save(photographs / f"{name}-large.{form}", quality=90)
        names.append(f"{name}-large.{form}")
    settings = MediaSettings(roots=(str(photographs),))
    encoder = MediaEncoder("image", folder, settings, ModalitySettings(uri=IMAGE_ENCODER_URI))
    held = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda inputs: (held.extend(i.size for i in inputs), forward(inputs))[1])
    bounded = encoder.encode(names)
    assert [min(size) for size in held] == [896, 896]
    monkeypatch.setattr(MediaEncoder, "_side", None)
    cosines = (bounded * encoder.encode(names)).sum(axis=1)
    assert cosines.min() >= 0.999, cosines


def test_the_network_sees_what_is_in_a_photograph(cache, folder, photographs) -> None:
    """With the classifier of the same checkpoint, which the conversion leaves out."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    from models.hub import resolve
    from models.hub.torch_file import read_tensors

    head = read_tensors(resolve(IMAGE_ENCODER_URI, cache=cache))
    model = AutoModel.from_pretrained(str(folder), use_safetensors=True, local_files_only=True).eval()
    processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True)
    pictures = [Image.open(photographs / f"{name}.png").convert("RGB") for name in ("flower", "china")]
    with torch.inference_mode():
        pooled = model(**processor(pictures, return_tensors="pt")).pooler_output.numpy()
    flower, china = pooled @ head["_fc.weight"].T + head["_fc.bias"]
    assert int(flower.argmax()) == DAISY
    assert len(BUILDINGS & set(np.argsort(-china)[:5].tolist())) >= 4
