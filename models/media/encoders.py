"""Encoders of pictures and sounds, behind the same port as the text encoder: references in, vectors out.

A reference is a path or URL. One that cannot be read gives a row of zeros, which means "this item has none", and is
kept with its reason for whoever asks. Models are transformers folders with safetensors. Called by the embedding job.
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

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), dimension] for references: unit rows, zeros for "" and what cannot be read."""
        found = np.zeros((len(texts), self.dimension), np.float32)
        rows: list[int] = []
        inputs: list[Any] = []
        for row, reference in enumerate(texts):
            if reference:
                try:
                    inputs.append(self._decoded(self._reader.read(reference)))
                    rows.append(row)
                except MediaRefused as error:
                    if len(self._unread) < _REMEMBERED:
                        self._unread.append((reference, str(error)))
            if inputs and (len(inputs) == self._batch or row == len(texts) - 1):
                found[rows] = self._forward(inputs)
                rows, inputs = [], []
        return found

    def take_unread(self) -> list[tuple[str, str]]:
        """Return the references that could not be read since the last call, each with its reason; at most 1,000."""
        found, self._unread = self._unread, []
        return found

    def _decoded(self, data: bytes) -> Any:
        if self._name == "image":
            return decode_image(data, max_pixels=self._settings.max_pixels)
        return decode_audio(data, rate=self._rate, max_seconds=self._settings.max_audio_s)

    def _forward(self, inputs: list[Any]) -> Vectors:
        import torch

        # Each sound by itself: padding to the longest would make a vector depend on its neighbours.
        batches = [inputs] if self._name == "image" else [[one] for one in inputs]
        rows = []
        for batch in batches:
            more = {} if self._name == "image" else {"sampling_rate": self._rate}
            given = self._processor(batch, return_tensors="pt", **more).to(self._device)
            with torch.inference_mode():
                rows.append(np.asarray(self._pooled(given).float().cpu().numpy(), np.float32))
        vectors = np.concatenate(rows)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, np.float32(1e-12)), np.float32)

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
