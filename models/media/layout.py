"""How vectors of several modalities share one vector of an item, so that one inner product compares them all.

Late fusion by weighted concatenation. An item's vector of unit length holds, for text weight w₀ and a modality m of
weight wₘ (all adding up to 1): √w₀·text, and for each modality √wₘ·its vector in one place where the item has it, or
√wₘ·text in another where it lacks it. A query asks both places. The inner product of a query (`asked`) and an item is
then

    Σ over the modalities both have: wₘ·cosₘ   +   (the rest of the weights)·cos(text)

so whatever lacks a picture is compared by text alone, as exactly as if there were no pictures, and stands beside items
with pictures on one scale. Called where vectors are made and where queries are; knows nothing of encoders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Part:
    """One modality beside the text."""

    name: str
    dimension: int
    weight: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each modality lies in a vector. `text` is the dimension of the text encoder."""

    text: int
    parts: tuple[Part, ...]

    @property
    def dimension(self) -> int:
        """Length of an item's vector."""
        return self.text + sum(part.dimension + self.text for part in self.parts)

    @property
    def text_weight(self) -> float:
        """What the modalities leave to the text."""
        return 1.0 - sum(part.weight for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest holds."""
        return {"text": self.text, "parts": [[p.name, p.dimension, p.weight] for p in self.parts]}

    @classmethod
    def from_json(cls, read: Mapping[str, Any] | None) -> Layout | None:
        """Return what a manifest says; None for vectors of text alone. Raises ValueError when it makes no sense."""
        if read is None:
            return None
        try:
            parts = tuple(Part(str(name), int(size), float(weight)) for name, size, weight in read["parts"])
            layout = cls(int(read["text"]), parts)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError("the manifest describes no layout of modalities") from error
        if layout.text < 1 or not parts or any(p.dimension < 1 or p.weight <= 0 for p in parts):
            raise ValueError("the manifest describes no layout of modalities")
        if layout.text_weight <= 0:
            raise ValueError("the manifest's modalities leave nothing to the text")
        return layout

    def joined(self, text: Vectors, media: Mapping[str, Vectors]) -> Vectors:
        """Return float32[items, dimension] of unit rows.

        `text` float32[items, text] of unit rows; `media` by name, rows of unit length or zero where an item lacks it.
        """
        columns = [np.float32(np.sqrt(self.text_weight)) * text]
        for part in self.parts:
            vectors = media.get(part.name)
            if vectors is None:
                vectors = np.zeros((len(text), part.dimension), np.float32)
            scale = np.float32(np.sqrt(part.weight))
            columns += [scale * vectors, scale * text * ~vectors.any(axis=1, keepdims=True)]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def texts(self, vectors: Vectors) -> Vectors:
        """Return what the texts of items mean, float32[items, text] of unit rows, whatever else `vectors` carry."""
        return np.asarray(vectors[:, : self.text] / np.float32(np.sqrt(self.text_weight)), np.float32)

    def has(self, vectors: Vectors, name: str) -> npt.NDArray[np.bool_]:
        """Return bool[items]: whose vectors hold the modality `name`."""
        for part, at in self._places():
            if part.name == name:
                return np.asarray(np.asarray(vectors[:, at : at + part.dimension]).any(axis=1), np.bool_)
        return np.zeros(len(vectors), bool)

    def item(self, text: Vectors) -> Vectors:
        """Return the vector of an item that is known by its text alone, float32[dimension]."""
        return np.asarray(self.joined(text[None, :], {})[0], np.float32)

    def text_of(self, vector: Vectors) -> Vectors:
        """Return the text's vector of an item (float32[dimension]), float32[text] of unit length."""
        return np.asarray(vector[: self.text] / np.float32(np.sqrt(self.text_weight)), np.float32)

    def changed(self, vector: Vectors, text: Vectors, *, without: Collection[str] = ()) -> Vectors:
        """Return an item's vector with another text and the pictures and sounds it had, less those of `without`."""
        found = self.item(text)
        for part, at in self._places():
            held, end = vector[at : at + part.dimension], at + part.dimension
            if part.name not in without and held.any():
                found[at:end], found[end : end + self.text] = held, 0
        return found

    def query(self, text: Vectors) -> Vectors:
        """Return what to ask for a text (float32[text]): the inner product with any item is the texts' cosine."""
        asked = np.zeros(self.dimension, np.float32)
        asked[: self.text] = text / np.float32(np.sqrt(self.text_weight))
        return asked

    def asked(self, vectors: Vectors) -> Vectors:
        """Return items (float32[items, dimension]) as queries, see above."""
        asked = np.array(vectors, np.float32)
        text = asked[:, : self.text] / np.float32(np.sqrt(self.text_weight))
        missing = np.zeros((len(asked), 1), np.float32)
        for part, at in self._places():
            there = asked[:, at : at + part.dimension].any(axis=1, keepdims=True)
            asked[:, at + part.dimension : at + part.dimension + self.text] = (
                np.float32(np.sqrt(part.weight)) * text * there
            )
            missing += np.float32(part.weight) * ~there
        asked[:, : self.text] = text * (np.float32(self.text_weight) + missing) / np.float32(np.sqrt(self.text_weight))
        return asked

    def _places(self) -> Sequence[tuple[Part, int]]:
        places, at = [], self.text
        for part in self.parts:
            places.append((part, at))
            at += part.dimension + self.text
        return places
