"""Encoders of pictures and sounds, behind the same port as the text encoder: references in, vectors out.

A reference is a path or URL. One that cannot be read, or that the model cannot take (a sound shorter than its first
window), gives a row of zeros, which means "this item has none", and is kept with its reason for whoever asks. Models
are transformers folders with safetensors. Called by the embedding job.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.media.decode import decode_audio, decode_image
from models.media.fetch import MediaReader, MediaRefused
from models.media.settings import MediaSettings, ModalitySettings

Vectors = npt.NDArray[np.float32]
_REMEMBERED = 1000


class MediaEncoder:
    """A transformers model of one modality, on the best device there is."""

    def __init__(self, name: str, folder: Path, settings: MediaSettings, of: ModalitySettings) -> None:
        """Load the model in `folder`. Raises ValueError when its vectors have another length than the settings say."""
        import torch
        from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoModel

        self._name, self._settings, self._batch = name, settings, of.batch_size
        self._unread: list[tuple[str, str]] = []
        self._reader = MediaReader(settings)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        loads = AutoImageProcessor if name == "image" else AutoFeatureExtractor
        only: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._processor = loads.from_pretrained(str(folder), **only)
        self._model = AutoModel.from_pretrained(str(folder), use_safetensors=True, **only).eval().to(self._device)
        self.dimension = of.dimension
        probe = np.zeros((64, 64, 3), np.uint8) if name == "image" else np.zeros(self._rate, np.float32)
        found = self._forward([probe]).shape[1]
        if found != of.dimension:
            raise ValueError(f"the encoder has {found} dimensions, models.media.{name}.dimension = {of.dimension}")

    @property
    def _rate(self) -> int:
        return int(getattr(self._processor, "sampling_rate", 16_000))

    @property
    def _side(self) -> int | None:
        """The largest side in pixels that the model reads, None where its files do not tell or it takes any size."""
        if not getattr(self._processor, "do_resize", False):
            return None
        steps = [("size", "do_resize"), ("crop_size", "do_center_crop")]
        used = [getattr(self._processor, name, None) for name, does in steps if getattr(self._processor, does, False)]
        return max((int(n) for size in used for n in dict(size or {}).values() if n), default=None)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), dimension] for references: unit rows, zeros for "" and what gives no vector.

        Raises MemoryError, or torch's own error, where not even one input fits into memory.
        """
        found = np.zeros((len(texts), self.dimension), np.float32)
        rows: list[int] = []
        inputs: list[Any] = []
        for row, reference in enumerate(texts):
            if reference:
                try:
                    inputs.append(self._decoded(self._reader.read(reference)))
                    rows.append(row)
                except MediaRefused as error:
                    self._note(reference, str(error))
            if inputs and (len(inputs) == self._batch or row == len(texts) - 1):
                for at, vector in zip(rows, self._vectors(inputs), strict=True):
                    if isinstance(vector, str):
                        self._note(texts[at], vector)
                    else:
                        found[at] = vector
                rows, inputs = [], []
        return found

    def take_unread(self) -> list[tuple[str, str]]:
        """Return the references that could not be read since the last call, each with its reason; at most 1,000."""
        found, self._unread = self._unread, []
        return found

    def _decoded(self, data: bytes) -> Any:
        if self._name == "image":
            return decode_image(data, max_pixels=self._settings.max_pixels, side=self._side)
        return decode_audio(data, rate=self._rate, max_seconds=self._settings.max_audio_s)

    def _note(self, reference: str, reason: str) -> None:
        if len(self._unread) < _REMEMBERED:
            self._unread.append((reference, reason))

    def _vectors(self, inputs: list[Any]) -> list[Vectors | str]:
        """Return for each input its unit vector, or why it has none, whatever the others do."""
        import torch

        try:
            raw = self._forward(inputs)
        except Exception as error:
            # Models refuse in their own ways, and a batch does not say whose fault it was.
            if len(inputs) > 1:
                return [found for one in inputs for found in self._vectors([one])]
            if isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise  # the machine's fault, not the input's
            return [f"the model cannot take it ({type(error).__name__})"]
        return [_unit(row) for row in raw]

    def _forward(self, inputs: list[Any]) -> Vectors:
        """Return what the model makes of `inputs`, float32[inputs, dim], of any length."""
        import torch

        # Each sound by itself: padding to the longest would make a vector depend on its neighbours.
        batches = [inputs] if self._name == "image" else [[one] for one in inputs]
        rows = []
        for batch in batches:
            more = {} if self._name == "image" else {"sampling_rate": self._rate}
            given = self._processor(batch, return_tensors="pt", **more).to(self._device)
            with torch.inference_mode():
                rows.append(np.asarray(self._pooled(given).float().cpu().numpy(), np.float32))
        return np.concatenate(rows)

    def _pooled(self, given: Any) -> Any:
        """Return one vector per input: of the shared space of a two-tower model, else the model's own pooling."""
        towers = getattr(self._model, f"get_{self._name}_features", None)
        output = self._model(**given) if towers is None else towers(**given)
        if hasattr(output, "shape"):
            return output.flatten(1)
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state.mean(dim=1)
        return pooled.flatten(1)


def _unit(row: Vectors) -> Vectors | str:
    """Return `row` (float32[dim]) with length one, or why that cannot be."""
    if not np.isfinite(row).all():
        return "the model's answer holds values that are not numbers"
    norm = np.linalg.norm(row.astype(np.float64))  # whose square does not overflow
    return np.asarray(row / norm, np.float32) if norm > 1e-12 else "the model's answer is zero"
