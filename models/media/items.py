"""The encoder of whole items: the text, and whichever pictures and sounds they carry, fused into one vector each.

Called by the embedding job where the settings name an encoder beside the text's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.encoder import Encoder
from models.media.encoders import MediaEncoder
from models.media.layout import Layout, Part
from models.media.settings import MediaSettings

Vectors = npt.NDArray[np.float32]


def layout_of(text: int, settings: MediaSettings) -> Layout | None:
    """Return where the chosen modalities lie in a vector beside a text of dimension `text`; None without any."""
    parts = tuple(Part(name, of.dimension, of.weight) for name, of in settings.chosen.items())
    return Layout(text, parts) if parts else None


class ItemEncoder:
    """Text and media encoders over one layout; also an `Encoder` of texts alone."""

    def __init__(self, text: Encoder, media: Mapping[str, Encoder], layout: Layout) -> None:
        """`media` by modality; each takes references, "" where an item has none, and gives zeros for those."""
        self._text, self._media, self.layout = text, media, layout
        self.dimension = layout.dimension

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of items that are known by their texts alone."""
        return self.layout.joined(self._text.encode(texts), {})

    def encode_items(self, items: ItemCatalog, rows: npt.NDArray[np.int32]) -> Vectors:
        """Return float32[rows, dimension] of unit length."""
        media = {name: encoder.encode(items.media(name, rows)) for name, encoder in self._media.items()}
        return self.layout.joined(self._text.encode(items.documents(rows)), media)

    def take_unread(self) -> list[tuple[str, str]]:
        """Return what could not be read since the last call, as (reference, reason)."""
        return [
            one
            for encoder in self._media.values()
            if isinstance(encoder, MediaEncoder)
            for one in encoder.take_unread()
        ]


def take_unread(encoder: Encoder) -> list[tuple[str, str]]:
    """Return what an encoder could not read since the last call, as (reference, reason)."""
    return encoder.take_unread() if isinstance(encoder, ItemEncoder) else []


def load_item_encoder(text: Callable[[], Encoder], folders: Mapping[str, Path], settings: MediaSettings) -> ItemEncoder:
    """Load the text encoder and those of the chosen modalities; `folders` by modality. It pickles as a partial."""
    loaded = text()
    layout = layout_of(loaded.dimension, settings)
    if layout is None:
        raise ValueError("models.media names no encoder")
    media = {name: MediaEncoder(name, folders[name], settings, of) for name, of in settings.chosen.items()}
    return ItemEncoder(loaded, media, layout)


def encode_rows(encoder: Encoder, items: ItemCatalog, rows: npt.NDArray[np.int32]) -> Vectors:
    """Return the vectors of catalog rows, with pictures and sounds where `encoder` reads them."""
    if isinstance(encoder, ItemEncoder):
        return encoder.encode_items(items, rows)
    return encoder.encode(items.documents(rows))
