"""Pictures and sounds become unit vectors; what cannot be read becomes zeros with a reason."""

import wave

import numpy as np
import pytest
from PIL import Image

from models.media.encoders import MediaEncoder
from models.media.settings import MediaSettings, ModalitySettings


@pytest.fixture
def images(image_model, media_root) -> MediaEncoder:
    settings = MediaSettings(roots=(str(media_root),))
    return MediaEncoder("image", image_model, settings, ModalitySettings(uri="x", dimension=24, batch_size=4))


def test_pictures_become_unit_vectors_in_order_and_alike_in_any_batch(images) -> None:
    names = [f"p{n}.png" for n in range(10)]
    vectors = images.encode(names)
    assert vectors.shape == (10, 24) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([images.encode([name]) for name in names])
    assert np.allclose(vectors, alone, atol=1e-5)
    assert len(np.unique(vectors.round(4), axis=0)) == 10


def test_what_is_missing_or_cannot_be_read_is_zero_and_told_once(images) -> None:
    vectors = images.encode(["", "p1.png", "neither", "../secret.png", "p2.png", ""])
    assert vectors.any(axis=1).tolist() == [False, True, False, False, True, False]
    assert [what for what, _ in images.take_unread()] == ["neither", "../secret.png"]
    assert images.take_unread() == []
    assert not images.encode(["", ""]).any() and images.encode([]).shape == (0, 24)


def test_sounds_become_unit_vectors(audio_model, media_root) -> None:
    settings = MediaSettings(roots=(str(media_root),))
    encoder = MediaEncoder("audio", audio_model, settings, ModalitySettings(uri="x", dimension=16, batch_size=2))
    vectors = encoder.encode(["s0.wav", "", "s1.wav", "p0.png"])
    assert vectors.any(axis=1).tolist() == [True, False, True, False]
    assert np.allclose(np.linalg.norm(vectors[[0, 2]], axis=1), 1, atol=1e-5)
    assert abs(float(vectors[0] @ vectors[2])) < 0.9999
    assert [what for what, _ in encoder.take_unread()] == ["p0.png"]


def write_sound(path, samples: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.sin(np.arange(samples) / 9) * 20_000).astype("<i2").tobytes())


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_large_pictures_are_held_small_and_mean_the_same(images, media_root, monkeypatch, form) -> None:
    rng = np.random.default_rng(1)
    names = []
    for n, size in enumerate([(1200, 900), (700, 1500), (2400, 300)]):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, np.int16) + rng.integers(-10, 11, (*size[::-1], 3))
        names.append(f"large{n}.{form}")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(media_root / names[-1], quality=90)
    assert images._side == 32
    held = []
    forward = images._forward
    monkeypatch.setattr(images, "_forward", lambda inputs: (held.extend(i.size for i in inputs), forward(inputs))[1])
    bounded = images.encode(names)
    assert len(held) == 3 and max(w * h for w, h in held) <= 64 * 32**2 * 1.02
    monkeypatch.setattr(type(images), "_side", None)
    whole = images.encode(names)
    assert (bounded * whole).sum(axis=1).min() >= 0.999


def test_a_sound_that_is_too_short_for_the_model_costs_no_other_its_vector(audio_model, media_root) -> None:
    write_sound(media_root / "click.wav", 5)
    settings = MediaSettings(roots=(str(media_root),))
    encoder = MediaEncoder("audio", audio_model, settings, ModalitySettings(uri="x", dimension=16, batch_size=4))
    alone = encoder.encode(["s0.wav", "s1.wav"])
    vectors = encoder.encode(["s0.wav", "click.wav", "s1.wav"])
    assert np.array_equal(vectors[[0, 2]], alone) and not vectors[1].any()
    ((what, why),) = encoder.take_unread()
    assert what == "click.wav" and why.startswith("the model cannot take it (")


def test_a_picture_that_the_model_cannot_take_costs_no_other_its_vector(images, media_root, monkeypatch) -> None:
    Image.new("RGB", (64, 48), "white").save(media_root / "white.png")
    pooled = images._pooled

    def refusing(given):
        if (given["pixel_values"].flatten(1).mean(dim=1) > 1.5).any():
            raise RuntimeError("no white")
        return pooled(given)

    good = images.encode(["p0.png", "p1.png"])
    monkeypatch.setattr(images, "_pooled", refusing)
    vectors = images.encode(["p0.png", "white.png", "p1.png"])
    assert np.allclose(vectors[[0, 2]], good, atol=1e-5) and not vectors[1].any()
    assert images.take_unread() == [("white.png", "the model cannot take it (RuntimeError)")]


def test_rows_that_are_not_numbers_are_refused_and_the_rest_of_the_batch_kept(images, monkeypatch) -> None:
    good = images.encode(["p0.png", "p1.png", "p2.png", "p3.png"])
    pooled = images._pooled

    def overflowing(given):
        found = pooled(given).clone()
        found[1, 3], found[2] = float("inf"), 0
        return found

    monkeypatch.setattr(images, "_pooled", overflowing)
    vectors = images.encode(["p0.png", "p1.png", "p2.png", "p3.png"])
    assert np.array_equal(vectors[[0, 3]], good[[0, 3]]) and not vectors[1:3].any()
    assert images.take_unread() == [
        ("p1.png", "the model's answer holds values that are not numbers"),
        ("p2.png", "the model's answer is zero"),
    ]


def test_a_machine_without_memory_is_not_taken_for_a_bad_picture(images, monkeypatch) -> None:
    def full(given):
        raise MemoryError

    monkeypatch.setattr(images, "_pooled", full)
    with pytest.raises(MemoryError):
        images.encode(["p0.png", "p1.png"])


def test_a_model_of_another_dimension_is_refused_with_the_setting_named(image_model) -> None:
    with pytest.raises(ValueError, match=r"24 dimensions, models\.media\.image\.dimension = 25"):
        MediaEncoder("image", image_model, MediaSettings(), ModalitySettings(uri="x", dimension=25))


def test_weights_that_leave_nothing_to_the_text_are_refused() -> None:
    half = ModalitySettings(uri="x", weight=0.5)
    with pytest.raises(ValueError, match="nothing to the text"):
        MediaSettings(image=half, audio=half)
    assert MediaSettings(image=half, audio=ModalitySettings(weight=0.5)).chosen == {"image": half}


def test_only_the_steps_that_a_processor_takes_tell_what_it_reads(images, monkeypatch) -> None:
    of = images._processor
    monkeypatch.setattr(of, "crop_size", {"height": 48, "width": 48})
    assert images._side == 48
    monkeypatch.setattr(of, "do_center_crop", False)
    assert images._side == 32
    monkeypatch.setattr(of, "do_resize", False)
    assert images._side is None
