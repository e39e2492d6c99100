"""Texts as token pairs: an item's text is tokenised once, a profile once per request, both are joined and padded.

Knows nothing of models. Called by the text ranker.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.rankers.pairs import Ids, PairTemplate, longest_first

Ints = npt.NDArray[np.int64]
Pair = tuple[Ids, Ids]
"""Token ids and token types of one pair, equally long."""
TextKey = bytes
"""Names an item's text: the same in every catalog, and another one when an item's text changes."""

_CHARS_PER_TOKEN = 16
"""Texts are cut to this many characters per wanted token before tokenising: 50 kB cost no more than 2 kB."""


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens of a text that can be needed, and how many it had: which of two is longer decides which is cut."""

    ids: Ids
    length: int


class _Kept:
    """What all `PairTokens` of one model share; started over in all of them at once."""

    def __init__(self) -> None:
        self.texts: dict[TextKey, Text] = {}


class PairTokens:
    """Makes the pairs of one catalog. Safe between threads: the cache only ever gains equal entries."""

    def __init__(
        self,
        tokenizer: Any,
        template: PairTemplate,
        catalog: ItemCatalog,
        *,
        max_tokens: int,
        cached_items: int,
        split_special: bool = False,
    ) -> None:
        """Pairs are joined by `template` and have at most `max_tokens`, or one token of text where that is too few.

        With `split_special` a text that spells a special token gets its letters and not that token.
        """
        self.template = template
        self._room = max(1, max_tokens - self.template.extra)
        self._tokenizer, self._catalog = tokenizer, catalog
        self._pad = int(tokenizer.pad_token_id or 0)
        self._cached_items, self._split_special = cached_items, split_special
        self._kept = _Kept()
        self._lock = threading.Lock()

    def over(self, catalog: ItemCatalog) -> PairTokens:
        """Return the same over another catalog; texts that both have are not tokenised again."""
        other = copy(self)
        other._catalog = catalog
        return other

    def keys(self, rows: Sequence[int]) -> list[TextKey]:
        """Return the key of each row's text."""
        return [_key(self._catalog.document(row)) for row in rows]

    def of(self, profile: str, rows: Sequence[int]) -> list[Pair]:
        """Return the pair of `profile` with the text of each row."""
        own = self._encode([profile])[0]
        return [self._joined(own, item) for item in self._item_texts(rows)]

    def padded(self, pairs: Sequence[Pair], multiple: int) -> tuple[Ints, Ints | None, Ints]:
        """Return tokens, types (None where the model has none) and mask, each int64[pairs, longest]."""
        longest = -(-max(len(ids) for ids, _ in pairs) // multiple) * multiple
        tokens = np.full((len(pairs), longest), self._pad, np.int64)
        types, mask = np.zeros_like(tokens), np.zeros_like(tokens)
        for at, (ids, kinds) in enumerate(pairs):
            tokens[at, : len(ids)], types[at, : len(ids)], mask[at, : len(ids)] = ids, kinds, 1
        return tokens, types if self.template.types is not None else None, mask

    def _item_texts(self, wanted: Sequence[int]) -> list[Text]:
        items = self._kept.texts
        if len(items) > self._cached_items:
            # Starting over costs one tokenisation per item; keeping count of use would cost every request.
            items = self._kept.texts = {}
        texts = {_key(text): text for text in map(self._catalog.document, wanted)}
        missing = [key for key in texts if key not in items]
        if missing:
            items.update(zip(missing, self._encode([texts[key] for key in missing]), strict=True))
        return [items[key] for key in self.keys(wanted)]

    def _joined(self, profile: Text, item: Text) -> Pair:
        own, theirs = longest_first(profile.length, item.length, self._room)
        return self.template.join(profile.ids[:own], item.ids[:theirs])

    def _encode(self, texts: list[str]) -> list[Text]:
        cut = [t[: self._room * _CHARS_PER_TOKEN] for t in texts]
        with self._lock:  # a fast tokenizer keeps whether it truncates as state
            encoded = self._tokenizer(
                cut,
                add_special_tokens=False,
                truncation=False,
                verbose=False,
                split_special_tokens=self._split_special,
            )
        return [Text(np.asarray(ids[: self._room], np.int32), len(ids)) for ids in encoded["input_ids"]]


def _key(text: str) -> TextKey:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
