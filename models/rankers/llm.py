"""A language model as text ranker: pointwise, prefill only, log p(yes) - log p(no) after one question per item.

Nothing is generated: one pass over the prompt gives the score, so it is a `TextEngine` like the others, with pairs
joined by a prompt instead of special tokens (the relevance of Sachan et al. 2022 and Zhuang et al. 2023, asked of a
profile instead of a query). Padding is on the right, where a causal model's earlier tokens do not see it. What profile
and item say is data between fixed words; no text of theirs can become a role of the chat. Knows nothing of items.
Called by the text ranker, where its folder holds a causal model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.rankers.pairs import PairTemplate

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_YES, _NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
_FIRST, _SECOND = "\u2441", "\u2442"
"""Stand in for profile and item while the prompt is cut into its three fixed parts; no chat template holds them."""

_QUESTION = (
    f"What a customer did lately:\n{_FIRST}\n\nAn item:\n{_SECOND}\n\n"
    "Will the customer choose this item next? Answer with yes or no."
)


class LlmEngine:
    """Implements `TextEngine` for a causal language model."""

    name, length_multiple = "llm", 1

    def __init__(self, model: Any, tokenizer: Any, *, device: str) -> None:
        """Raises ValueError when the tokenizer has no word for yes or no."""
        self._model, self._device = model, device
        self._yes, self._no = _words(tokenizer, _YES), _words(tokenizer, _NO)
        if not self._yes or not self._no:
            raise ValueError("the tokenizer has no single token for yes and for no")

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`: log p(yes) - log p(no) as the next token."""
        import torch

        last = torch.from_numpy(mask.sum(axis=1) - 1).to(self._device)
        with torch.inference_mode():
            sent = {"input_ids": tokens, "attention_mask": mask}
            given = {name: torch.from_numpy(a).to(self._device) for name, a in sent.items()}
            # Only the last token's states go through the vocabulary, the most expensive product of a small model.
            states = self._model.get_decoder()(**given, use_cache=False).last_hidden_state
            final = states[torch.arange(len(tokens), device=states.device), last]
            words = self._model.get_output_embeddings()(final).float()
            found: Floats = (
                (torch.logsumexp(words[:, self._yes], dim=1) - torch.logsumexp(words[:, self._no], dim=1)).cpu().numpy()
            )
        return found


def is_causal(config: Any) -> bool:
    """Whether a transformers configuration is that of a model that continues text."""
    return any(str(name).endswith("ForCausalLM") for name in getattr(config, "architectures", None) or ())


def prompt_template(tokenizer: Any) -> PairTemplate:
    """Return the fixed tokens of the prompt before, between and after profile and item.

    Raises ValueError when the tokenizer's chat template does not leave a message as it is.
    """
    text = _QUESTION + "\nAnswer:"
    if getattr(tokenizer, "chat_template", None):
        message = [{"role": "user", "content": _QUESTION}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    head, found, rest = text.partition(_FIRST)
    middle, found_too, tail = rest.partition(_SECOND)
    if not found or not found_too:
        raise ValueError("the chat template changes what a message says")
    before, between, after = (
        tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (head, middle, tail)
    )
    start = _start(tokenizer)
    if before[: len(start)] == start:
        start = ()
    return PairTemplate(start + before, between, after, None)


def _start(tokenizer: Any) -> tuple[int, ...]:
    """Return the token that this tokenizer itself puts before a text, or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return tuple(whole[: len(whole) - len(plain)]) if list(whole[-len(plain) :]) == list(plain) else ()


def _words(tokenizer: Any, words: Sequence[str]) -> list[int]:
    found = {}
    for word in words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found[ids[0]] = word
    return sorted(found)
