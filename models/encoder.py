"""Text encoders: text in, unit vectors out.

`SentenceTransformerEncoder` is the real one; `HashEncoder` is the fake for tests (deterministic, no model).
Called by the offline embedding job and, for queries and live items, by serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Encoder(Protocol):
    """Embeds texts into one space; the same text always gives the same vector."""

    dimension: int

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return float32[len(texts), dimension] of unit length. Synchronous: callers run it in an executor."""
        ...


class SentenceTransformerEncoder:
    """sentence-transformers on the best device there is; loads only local safetensors."""

    def __init__(self, folder: Path, *, max_tokens: int = 128, batch_size: int = 32, device: str | None = None) -> None:
        """Load the model in `folder`. `device` None picks CUDA where torch finds it, else the CPU."""
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        self._model.max_seq_length = max_tokens
        self._batch_size = batch_size
        self.dimension = int(self._model.get_embedding_dimension() or 0)

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> npt.NDArray[np.float32]:
        """Return unit vectors; `progress` draws a bar on stderr."""
        if not texts:
            return np.empty((0, self.dimension), np.float32)
        vectors = self._model.encode(
            list(texts), batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=progress
        )
        return np.asarray(vectors, dtype=np.float32)


def load_encoder(folder: Path, *, max_tokens: int, batch_size: int, threads: int) -> SentenceTransformerEncoder:
    """Load the encoder in `folder` into a process that computes with so many CPU threads from now on."""
    import torch

    torch.set_num_threads(threads)
    return SentenceTransformerEncoder(folder, max_tokens=max_tokens, batch_size=batch_size)


class HashEncoder:
    """A fake: a bag of hashed words, so that texts sharing words are close."""

    def __init__(self, dimension: int = 32) -> None:
        self.dimension = dimension

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return unit vectors of hashed word counts (a constant vector for empty text)."""
        from models.ids import hash64

        out = np.full((len(texts), self.dimension), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in text.casefold().split():
                h = hash64(word)
                out[row, h % self.dimension] += 1.0 if h & (1 << 40) else -1.0
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), dtype=np.float32)
