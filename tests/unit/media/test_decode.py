"""Pixels and samples within limits, from files good and bad."""

import contextlib
import io
import wave

import numpy as np
import pytest
from PIL import Image

from models.media.decode import decode_audio, decode_image
from models.media.fetch import MediaRefused


def picture(form: str = "PNG", size=(40, 30), mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, options.pop("color", "red")).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_pictures_of_the_usual_formats_are_read(form: str) -> None:
    read = decode_image(picture(form), max_pixels=2000)
    assert read.size == (40, 30) and read.mode == "RGB"
    assert np.asarray(read)[5, 5].tolist() == pytest.approx([255, 0, 0], abs=4)


def test_transparent_pixels_are_white() -> None:
    read = decode_image(picture(mode="RGBA", color=(0, 0, 0, 0)), max_pixels=2000)
    assert np.asarray(read).min() == 255


def test_a_picture_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(picture("JPEG", exif=exif), max_pixels=2000).size == (30, 40)


def test_a_picture_with_too_many_pixels_is_not_unpacked() -> None:
    bomb = picture(size=(4000, 4000))
    assert len(bomb) < 100_000
    with pytest.raises(MediaRefused, match="max_pixels = 1000000"):
        decode_image(bomb, max_pixels=1_000_000)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something like a photograph: soft areas, edges and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (height, width, 3))
    for _ in range(12):
        y, x = int(rng.integers(height * 3 // 4)), int(rng.integers(width * 3 // 4))
        pixels[y : y + height // 6, x : x + width // 5] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(3000, 2000), (1000, 3000), (6000, 100), (1280, 20), (257, 300), (100, 80)])
def test_what_is_kept_of_a_picture_is_bounded_by_the_model_s_size_and_keeps_its_shape(form, size) -> None:
    read = decode_image(saved(scene(*size), form), max_pixels=50_000_000, side=64)
    assert read.size[0] * read.size[1] <= 64 * 64**2 * 1.02
    assert min(read.size) >= min(64, *size)  # never below what the model reads
    assert read.size[0] / read.size[1] == pytest.approx(size[0] / size[1], rel=0.02)
    if min(size) <= 256 and size[0] * size[1] <= 64 * 64**2:
        assert read.size == size


def test_a_picture_that_is_small_enough_keeps_every_pixel() -> None:
    small = scene(250, 200)
    assert np.array_equal(np.asarray(decode_image(saved(small, "PNG"), max_pixels=10**6, side=64)), np.asarray(small))


def test_a_large_jpeg_is_not_unpacked_in_full(monkeypatch) -> None:
    data = saved(scene(4000, 3000), "JPEG")
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (loaded.append(self.size), load(self))[1])
    decode_image(data, max_pixels=50_000_000, side=64)
    assert max(w * h for w, h in loaded) <= 1000 * 750


def test_a_bounded_picture_is_turned_and_whitened_like_a_whole_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        data = saved(scene(1600, 800), form, exif=exif)
        whole, read = (decode_image(data, max_pixels=10**7, side=side) for side in (None, 64))
        assert whole.size == (800, 1600) and read.size == (256, 512)
        again = np.asarray(whole.resize(read.size, Image.Resampling.BICUBIC), np.float32)
        assert np.abs(np.asarray(read, np.float32) - again).mean() < 3
    layer = scene(1600, 800).convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    for made in (layer, layer.quantize(64)):  # the latter with a palette
        data = saved(made, "PNG")
        whole, read = (decode_image(data, max_pixels=10**7, side=side) for side in (None, 64))
        again = np.asarray(whole.resize(read.size, Image.Resampling.BICUBIC), np.float32)
        assert read.mode == "RGB" and np.abs(np.asarray(read, np.float32) - again).mean() < 3


def test_a_bomb_stays_refused_however_small_it_would_be_kept() -> None:
    with pytest.raises(MediaRefused, match="max_pixels = 1000000"):
        decode_image(picture("JPEG", size=(4000, 4000)), max_pixels=1_000_000, side=64)


@pytest.mark.parametrize("size", [(1, 65), (6500, 100), (5, 1000)])
def test_a_thread_of_pixels_is_refused(size) -> None:
    with pytest.raises(MediaRefused, match="64 times as long as wide"):
        decode_image(picture(size=size), max_pixels=10**7, side=64)
    assert decode_image(picture(size=(1, 64)), max_pixels=10**7, side=64).size == (1, 64)


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"GIF89a", picture()[:60], picture("BMP"), picture("TIFF"), picture("PPM")]
)
def test_what_is_no_picture_of_these_formats_is_refused(data: bytes) -> None:
    with pytest.raises(MediaRefused):
        decode_image(data, max_pixels=2000)


def test_a_flipped_byte_never_raises_anything_else() -> None:
    good = picture("JPEG", size=(64, 64))
    rng = np.random.default_rng(0)
    for _ in range(200):
        bad = bytearray(good)
        bad[int(rng.integers(len(bad)))] ^= int(rng.integers(1, 256))
        with contextlib.suppress(MediaRefused):
            decode_image(bytes(bad), max_pixels=10_000)


def sound(samples: np.ndarray, *, rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        scaled = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
        if width == 1:
            scaled += 128
        raw = scaled.astype("<i8").view(np.uint8).reshape(len(scaled), 8)[:, :width].tobytes()
        file.writeframes(raw)
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_come_out_the_same(width: int) -> None:
    wanted = 0.5 * np.sin(np.arange(1600) / 10)
    read = decode_audio(sound(wanted, width=width), rate=16_000, max_seconds=1)
    assert read.dtype == np.float32 and np.allclose(read, wanted, atol=2.0 ** (2 - 8 * width))


def test_channels_are_averaged_and_rates_brought_together() -> None:
    left = np.sin(np.arange(44_100) * 2 * np.pi * 440 / 44_100) * 0.5
    both = np.stack([left, np.zeros_like(left)], axis=1).reshape(-1)
    read = decode_audio(sound(both, rate=44_100, channels=2), rate=16_000, max_seconds=10)
    assert abs(len(read) - 16_000) <= 1
    expected = np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000) * 0.25
    assert np.abs(read[200:15_800] - expected[200:15_800]).max() < 0.01


def test_long_sounds_are_cut() -> None:
    assert len(decode_audio(sound(np.zeros(48_000)), rate=16_000, max_seconds=2)) == 32_000


@pytest.mark.parametrize("data", [b"", b"RIFF", b"OggS" + b"\0" * 60, sound(np.zeros(0)), sound(np.zeros(100))[:30]])
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    with pytest.raises(MediaRefused):
        decode_audio(data, rate=16_000, max_seconds=1)
