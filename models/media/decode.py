"""From the bytes of a file to pixels or samples, within limits that hold before anything is unpacked.

Pictures by Pillow, a few formats only; sounds by the standard library, WAV with PCM samples only. Called by the media
encoders. Knows nothing of where bytes come from.
"""

from __future__ import annotations

import io
import math
import wave
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.media.fetch import MediaRefused

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = ("JPEG", "PNG", "WEBP", "GIF")


READING = 2
"""Version of what is made of a file; raise it when the same file gives other pixels or samples."""
MOST_ELONGATED = 64
"""Pictures longer than so many times their width are refused: scaled to a model's width they would fill the memory."""


def decode_image(data: bytes, *, max_pixels: int, side: int | None = None) -> Image:
    """Return the picture in RGB, turned as its camera says, transparency over white. Raises MediaRefused.

    With `side`, the size in pixels that a model reads, the picture has at most 64·side² pixels: its shorter side is
    scaled to 4·side (of an elongated one to less, but never below `side`), and the model's own scaling does the rest.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            width, height = picture.size
            if width < 1 or height < 1 or width * height > max_pixels:
                raise MediaRefused(f"{width} × {height} pixels, models.media.max_pixels = {max_pixels}")
            if max(width, height) > MOST_ELONGATED * min(width, height):
                raise MediaRefused(f"{width} × {height} pixels: more than {MOST_ELONGATED} times as long as wide")
            wanted = _bounded(width, height, side)
            # A JPEG is unpacked no larger than needed; twice as large, since its own scaling is a coarse one.
            picture.draft(picture.mode, (2 * wanted[0], 2 * wanted[1]))
            picture.load()
            clear = "A" in picture.getbands() or "transparency" in picture.info
            # Scaled before anything else is made of it, so that one picture at a time is there in full size.
            small = picture.convert("RGBA" if clear else "RGB")
            if small.size != wanted and wanted != (width, height):
                small = small.resize(wanted, Image.Resampling.BICUBIC, reducing_gap=3.0)
            turned = ImageOps.exif_transpose(small)
            if clear:
                white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, turned).convert("RGB")
            return turned
    except MediaRefused:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaRefused(f"not a picture that can be read ({', '.join(PICTURES)})") from error
    except Exception as error:
        # Decoders raise anything for crafted files.
        raise MediaRefused(f"a damaged picture ({type(error).__name__})") from error


def _bounded(width: int, height: int, side: int | None) -> tuple[int, int]:
    """Return the size that a picture is scaled to for a model of `side` pixels; its own where it is no larger."""
    if side is None:
        return width, height
    shorter, longer = sorted((width, height))
    scale = min(1.0, 4 * side / shorter, 8 * side / math.sqrt(shorter * longer))
    return max(1, round(width * scale)), max(1, round(height * scale))


def decode_audio(data: bytes, *, rate: int, max_seconds: float) -> npt.NDArray[np.float32]:
    """Return float32[samples] in −1 to 1, one channel, `rate` samples a second. Raises MediaRefused."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, own = file.getnchannels(), file.getsampwidth(), file.getframerate()
            if width not in (1, 2, 3, 4) or not 1 <= channels <= 16 or not 1000 <= own <= 384_000:
                raise MediaRefused(f"{channels} channels of {8 * width} bits at {own} Hz are not read")
            raw = file.readframes(min(file.getnframes(), math.ceil(max_seconds * own)))
    except (wave.Error, EOFError, RuntimeError, ValueError) as error:
        raise MediaRefused("not a WAV file of PCM samples") from error
    frames = len(raw) // (channels * width)
    if frames == 0:
        raise MediaRefused("holds no samples")
    samples = _samples(raw[: frames * channels * width], width).reshape(frames, channels).mean(axis=1)
    if own == rate:
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly

    shared = math.gcd(own, rate)
    return np.asarray(resample_poly(samples, rate // shared, own // shared), np.float32)


def _samples(raw: bytes, width: int) -> npt.NDArray[np.float64]:
    if width == 1:  # the only width without a sign
        return (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    if width == 3:
        padded = np.zeros((len(raw) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return padded.view("<i4").reshape(-1) / 2.0**31
    return np.frombuffer(raw, f"<i{width}") / 2.0 ** (8 * width - 1)
