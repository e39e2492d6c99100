"""The `text` ranker: a transformers sequence-classification model reads profile text and item text together.

Works with any local folder that `AutoModelForSequenceClassification` loads with one label (bge-reranker,
MiniLM cross-encoders, one fine-tuned here). Item texts are tokenised once and cached; a request tokenises only the
profile. float32 on the CPU, bfloat16 with scaled-dot-product attention on a GPU. Loaded through `load_ranker`.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.compressed import RankerError
from models.rankers.pairs import Ids, budget_batches, pair_template
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]

_CHARS_PER_TOKEN = 16
"""Texts are cut to this many characters per wanted token before tokenising: 50 kB cost no more than 2 kB."""


class TextRanker:
    """Implements `CrossEncoder`. `score` may run in several threads; the caches only ever gain equal entries."""

    score_kind = "rank_only"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        catalog: ItemCatalog,
        *,
        device: str,
        profile_tokens: int = 96,
        item_tokens: int = 128,
        batch_tokens: int = 4096,
        cached_items: int = 100_000,
    ) -> None:
        """`model` and `tokenizer` are loaded already (see `load`); token limits are per text and per batch."""
        try:
            self._template = pair_template(tokenizer)
        except ValueError as error:
            raise RankerError(f"the tokenizer of this text ranker cannot be used: {error}") from error
        if model.config.num_labels != 1:
            raise RankerError(f"config.json: {model.config.num_labels} labels; a ranker has exactly one")
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30)) - self._template.extra - 2
        self._profile_tokens = min(profile_tokens, limit // 2)
        self._item_tokens = min(item_tokens, limit - self._profile_tokens)
        self._model, self._tokenizer, self._catalog, self._device = model, tokenizer, catalog, device
        self._pad = int(tokenizer.pad_token_id or 0)
        self._batch_tokens, self._cached_items = batch_tokens, cached_items
        self._items: dict[int, Ids] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: Path, catalog: ItemCatalog, *, device: str | None = None, **limits: int) -> TextRanker:
        """Load the model in `folder` (safetensors, nothing from the network, no code from the folder).

        `device` None picks CUDA where torch finds it. `limits` are the token limits of the constructor.
        Raises RankerError naming the folder when it is not such a model.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        if not (folder / "model.safetensors").exists() and not (folder / "model.safetensors.index.json").exists():
            raise RankerError(f"{folder.name}: model.safetensors is missing; save the model as safetensors")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                attn_implementation="sdpa",
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise RankerError(f"{folder.name}: not a sequence-classification model: {error}") from error
        return cls(model.eval().to(device), tokenizer, catalog, device=device, **limits)

    def score(self, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """See `CrossEncoder.score`: the model's logit; each pair is read alone, whatever its batch."""
        if len(candidates) == 0:
            return np.empty(0, np.float32)
        profile = self._encode([profile_text(query, self._catalog)], self._profile_tokens)[0]
        pairs = [self._template.join(profile, item) for item in self._item_ids(candidates.rows)]
        lengths = np.fromiter((len(ids) for ids, _ in pairs), np.int64, len(pairs))
        out = np.empty(len(pairs), np.float32)
        for batch in budget_batches(lengths, self._batch_tokens):
            out[batch] = self._forward([pairs[at] for at in batch])
        return out

    def _forward(self, pairs: list[tuple[Ids, Ids]]) -> Floats:
        import torch

        longest = max(len(ids) for ids, _ in pairs)
        tokens = np.full((len(pairs), longest), self._pad, np.int64)
        types, mask = np.zeros_like(tokens), np.zeros_like(tokens)
        for at, (ids, kinds) in enumerate(pairs):
            tokens[at, : len(ids)], types[at, : len(ids)], mask[at, : len(ids)] = ids, kinds, 1
        inputs = {"input_ids": tokens, "attention_mask": mask}
        if self._template.types is not None:
            inputs["token_type_ids"] = types
        with torch.inference_mode():
            sent = {name: torch.from_numpy(a).to(self._device) for name, a in inputs.items()}
            logits: Floats = self._model(**sent).logits[:, 0].float().cpu().numpy()
        return logits

    def _item_ids(self, rows: npt.NDArray[np.int32]) -> list[Ids]:
        wanted = rows.tolist()
        items = self._items
        if len(items) > self._cached_items:
            # Starting over costs one tokenisation per item; keeping count of use would cost every request.
            items = self._items = {}
        missing = [r for r in dict.fromkeys(wanted) if r not in items]
        if missing:
            found = self._encode([self._catalog.document(r) for r in missing], self._item_tokens)
            items.update(zip(missing, found, strict=True))
        return [items[r] for r in wanted]

    def _encode(self, texts: list[str], limit: int) -> list[Ids]:
        cut = [t[: limit * _CHARS_PER_TOKEN] for t in texts]
        with self._lock:  # a fast tokenizer keeps its truncation length as state
            encoded = self._tokenizer(cut, add_special_tokens=False, truncation=True, max_length=limit)
        return [np.asarray(ids, np.int32) for ids in encoded["input_ids"]]
