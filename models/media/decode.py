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


def decode_image(data: bytes, *, max_pixels: int) -> Image:
    """Return the picture in RGB, turned as its camera says, transparency over white. Raises MediaRefused."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            width, height = picture.size
            if width < 1 or height < 1 or width * height > max_pixels:
                raise MediaRefused(f"{width} × {height} pixels, models.media.max_pixels = {max_pixels}")
            picture.load()
            turned = ImageOps.exif_transpose(picture)
            if "A" in turned.getbands() or "transparency" in turned.info:
                layer = turned.convert("RGBA")
                white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
                return Image.alpha_composite(white, layer).convert("RGB")
            return turned.convert("RGB")
    except MediaRefused:
        raise
    except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaRefused(f"not a picture that can be read ({', '.join(PICTURES)})") from error
    except Exception as error:
        # Decoders raise anything for crafted files.
        raise MediaRefused(f"a damaged picture ({type(error).__name__})") from error


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
