"""The space of a release's vectors: which encoder made them, what may be compared with them, and that encoder itself.

Vectors of two encoders mean nothing beside each other, so whatever comes from outside of a release (a search, what
users declared, an item of the log) is asked here first. Called by the bundle and by whatever embeds for one. Knows
nothing of requests.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.artifacts import ArtifactError
from models.encoder import Encoder
from models.features import UserFeatures
from models.hub import HubError, resolve
from models.intent import encoder_tag

Load = Callable[[str, int], Encoder]
"""Loads the encoder of a URI, which reads so many tokens of a text."""


@dataclass(frozen=True, slots=True)
class EncoderPlace:
    """Where a process finds encoders; picklable."""

    uri: str
    """The encoder of the settings, which whoever starts the process has fetched into `folder`."""
    folder: Path
    cache: Path
    """Where any other one is, or is fetched to."""

    def load(self, uri: str, max_tokens: int) -> Encoder:
        """Fetch the encoder where it is missing, and load it. Raises HubError, and what a broken model raises."""
        from models.encoder import SentenceTransformerEncoder

        folder = self.folder if uri == self.uri else resolve(uri, cache=self.cache)
        return SentenceTransformerEncoder(folder, max_tokens=max_tokens)


class EncoderShelf:
    """The encoders of the releases that a process holds, each loaded once; one goes with the last release it is of.

    Safe for several threads.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._held: weakref.WeakValueDictionary[tuple[str, int], Encoder] = weakref.WeakValueDictionary()
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def of(self, uri: str, max_tokens: int) -> Encoder:
        """Return the encoder of `uri`: the one that is here, or a new one. Raises what `load` raises."""
        with self._loading:
            found = self._held.get((uri, max_tokens))
            if found is None:
                found = self._held[uri, max_tokens] = self._load(uri, max_tokens)
            return found


@dataclass(frozen=True)
class TextSpace:
    """The space of one release, shared by everything that grows from it."""

    uri: str | None = None
    """The encoder that made the vectors; None where nobody knows."""
    max_tokens: int = 128
    """Longer texts are cut."""
    dimension: int = 0
    """Length of the vectors of texts."""
    untagged: bool = True
    """Whether vectors that do not say who made them are of this encoder."""
    shelf: EncoderShelf | None = None
    """Where the encoder comes from; None in a process that embeds nothing."""

    @classmethod
    def of(
        cls, meta: Mapping[str, Any], dimension: int, *, untagged: str | None, shelf: EncoderShelf | None
    ) -> TextSpace:
        """Return the space of vectors with this manifest. `untagged`: the encoder of those that do not say theirs."""
        made = meta.get("inputs", {})
        uri = made.get("encoder")
        mine = untagged is None or uri in (None, untagged)
        return cls(uri, int(made.get("max_tokens", cls.max_tokens)), dimension, mine, shelf)

    @property
    def tag(self) -> bytes:
        """What a vector of this encoder is kept with (`models.intent.encoder_tag`)."""
        return encoder_tag(self.uri)

    def compares(self, tag: bytes) -> bool:
        """Whether what was kept with `tag` may be compared with the vectors of the release."""
        return tag == self.tag if tag else self.untagged

    def understood(self, user: UserFeatures) -> UserFeatures:
        """Return `user` without the vectors that another encoder made; what they declared by name stays."""
        if user.intent is not None and not self.compares(user.intent_tag):
            user = replace(user, intent=None)
        said = user.declared
        if said is not None and said.vector is not None and not self.compares(said.tag):
            user = replace(user, declared=replace(said, vector=None))
        return user

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, loaded and tried.

        Raises HubError where it cannot be fetched and ArtifactError where it cannot be used; both name it.
        """
        if self.uri is None or self.shelf is None:
            raise ArtifactError("nothing says by which encoder the vectors were made, or where it is")
        try:
            encoder = self.shelf.of(self.uri, self.max_tokens)
            tried = encoder.encode(["warm up"])
        except HubError as error:
            raise HubError(f"the encoder {self.uri} cannot be fetched: {error}") from error
        except Exception as error:
            # Whatever a broken model raises: the release is refused, and the one before it goes on serving.
            raise ArtifactError(f"the encoder {self.uri} cannot be loaded: {type(error).__name__}: {error}") from error
        if tried.shape != (1, self.dimension) or not np.isfinite(tried).all():
            raise ArtifactError(f"the encoder {self.uri} gives {tried.shape[1]} dimensions, not {self.dimension}")
        return encoder
