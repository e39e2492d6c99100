"""Token pairs: how a tokeniser joins two texts, learned once, so that each text is tokenised only once.

Knows nothing of models. Called by the text ranker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """The special tokens before, between and after the two texts; `types` are their token types, or None."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int] | None
    """Token types of the parts before, first, between, second, after."""

    @property
    def extra(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: Ids, second: Ids) -> tuple[Ids, Ids]:
        """Return (token ids, token types) of one pair."""
        parts = (self.before, first, self.between, second, self.after)
        ids = np.concatenate([np.asarray(p, np.int32) for p in parts])
        kinds = self.types or (0, 0, 0, 0, 0)
        return ids, np.repeat(np.asarray(kinds, np.int32), [len(p) for p in parts])


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts are kept so that both fit in `room`: the longer one is cut first.

    The rule of Hugging Face tokenizers (`truncation="longest_first"`), so that cached tokens are cut alike.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)


def pair_template(tokenizer: Any, *, first: str = "red", second: str = "blue") -> PairTemplate:
    """Derive the template from how `tokenizer` joins two words. Raises ValueError when it does something else."""
    joined = tokenizer(first, second)
    ids = list(joined["input_ids"])
    a = list(tokenizer(first, add_special_tokens=False)["input_ids"])
    b = list(tokenizer(second, add_special_tokens=False)["input_ids"])
    at_a = _find(ids, a, 0)
    at_b = _find(ids, b, at_a + len(a)) if at_a >= 0 else -1
    if not a or not b or at_b < 0:
        raise ValueError("the tokenizer does not join two texts as special tokens around each")
    end_a, end_b = at_a + len(a), at_b + len(b)
    types: tuple[int, int, int, int, int] | None = None
    if "token_type_ids" in joined:
        kinds = list(joined["token_type_ids"])
        between = kinds[end_a] if at_b > end_a else kinds[at_a]
        types = (kinds[0], kinds[at_a], between, kinds[at_b], kinds[-1])
    return PairTemplate(tuple(ids[:at_a]), tuple(ids[end_a:at_b]), tuple(ids[end_b:]), types)


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    for at in range(start, len(ids) - len(part) + 1):
        if list(ids[at : at + len(part)]) == list(part):
            return at
    return -1


def budget_batches(lengths: npt.NDArray[np.int64], budget: int) -> list[npt.NDArray[np.int64]]:
    """Group positions by falling length so that (members × longest) stays within `budget` tokens.

    Every position is in exactly one batch; one longer than the budget is a batch of its own.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, budget // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def equal_batches(lengths: npt.NDArray[np.int64], budget: int, multiple: int) -> list[npt.NDArray[np.int64]]:
    """As `budget_batches`, but together are only those that are equally long when rounded up to `multiple`."""
    rounded = -(-lengths // multiple) * multiple
    batches = []
    for length in np.unique(rounded)[::-1]:
        members = np.flatnonzero(rounded == length)
        size = max(1, budget // max(1, int(length)))
        batches += [members[at : at + size] for at in range(0, len(members), size)]
    return batches
