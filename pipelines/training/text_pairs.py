"""Pairs of profile and item as the text ranker will read them when it serves: same words, same cut, same tokens.

Knows nothing of models. Called by the text training.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.rankers.pairs import Ids, longest_first, pair_template
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery

Ints = npt.NDArray[np.int64]
_CHARS_PER_TOKEN = 16
"""As in serving: a text of 50 kB costs no more than one of 2 kB."""


class PairReader:
    """Tokenises pairs; item texts once."""

    def __init__(self, tokenizer: Any, catalog: ItemCatalog, *, max_tokens: int) -> None:
        """`max_tokens` is the longest pair, special tokens included."""
        self._tokenizer, self._catalog = tokenizer, catalog
        self._template = pair_template(tokenizer)
        self._room = max(1, max_tokens - self._template.extra)
        self._pad = int(tokenizer.pad_token_id or 0)
        self._items: dict[int, tuple[Ids, int]] = {}

    def read(self, query: RetrievalQuery, rows: npt.NDArray[np.int32]) -> list[tuple[Ids, Ids]]:
        """Return (tokens, types) of the user's profile with each item."""
        profile, own_length = self._encode([profile_text(query, self._catalog)])[0]
        missing = [r for r in dict.fromkeys(rows.tolist()) if r not in self._items]
        if missing:
            found = self._encode([self._catalog.document(r) for r in missing])
            self._items.update(zip(missing, found, strict=True))
        pairs = []
        for row in rows.tolist():
            item, length = self._items[row]
            own, theirs = longest_first(own_length, length, self._room)
            pairs.append(self._template.join(profile[:own], item[:theirs]))
        return pairs

    def padded(self, pairs: list[tuple[Ids, Ids]]) -> dict[str, Ints]:
        """Return the inputs of the model, each int64[pairs, longest]."""
        longest = max(len(ids) for ids, _ in pairs)
        tokens = np.full((len(pairs), longest), self._pad, np.int64)
        types, mask = np.zeros_like(tokens), np.zeros_like(tokens)
        for at, (ids, kinds) in enumerate(pairs):
            tokens[at, : len(ids)], types[at, : len(ids)], mask[at, : len(ids)] = ids, kinds, 1
        inputs = {"input_ids": tokens, "attention_mask": mask}
        return inputs if self._template.types is None else {**inputs, "token_type_ids": types}

    def _encode(self, texts: list[str]) -> list[tuple[Ids, int]]:
        cut = [t[: self._room * _CHARS_PER_TOKEN] for t in texts]
        encoded = self._tokenizer(cut, add_special_tokens=False, truncation=False, verbose=False)
        return [(np.asarray(ids[: self._room], np.int32), len(ids)) for ids in encoded["input_ids"]]
