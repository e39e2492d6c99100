"""The `text` ranker: a transformers sequence-classification model reads profile text and item text together.

Works with any local folder that `AutoModelForSequenceClassification` loads with one label (bge-reranker,
MiniLM cross-encoders, one fine-tuned here). Item texts are tokenised once and cached; a request tokenises only the
profile, and scores are kept for a profile that asks again. float32 or int8 on the CPU, bfloat16 with scaled-dot-product
attention on a GPU; `engines` says what computes. Loaded through `load_ranker`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.compressed import RankerError
from models.rankers.engines import EngineName, Int8Engine, TextEngine, TransformersEngine, text_engine
from models.rankers.pairs import Ids, budget_batches, equal_batches, longest_first, pair_template
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_CHARS_PER_TOKEN = 16
"""Texts are cut to this many characters per wanted token before tokenising: 50 kB cost no more than 2 kB."""

_CALIBRATION_PAIRS, _CALIBRATION_TITLES = 64, 4


@dataclass(frozen=True, slots=True)
class _Text:
    """The tokens of a text that can be needed, and how many it had: which of two is longer decides which is cut."""

    ids: Ids
    length: int


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
        engine: TextEngine | None = None,
        max_tokens: int = 224,
        batch_tokens: int = 4096,
        cached_items: int = 100_000,
        cached_profiles: int = 512,
    ) -> None:
        """`model` and `tokenizer` are loaded already (see `load`); token limits are per pair and per batch.

        `engine` None runs the model as it is. `cached_profiles` profiles keep the scores of their items; 0 keeps none.
        """
        try:
            self._template = pair_template(tokenizer)
        except ValueError as error:
            raise RankerError(f"the tokenizer of this text ranker cannot be used: {error}") from error
        if model.config.num_labels != 1:
            raise RankerError(f"config.json: {model.config.num_labels} labels; a ranker has exactly one")
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30)) - 2
        self._room = max(1, min(max_tokens, limit) - self._template.extra)
        self.engine = engine or TransformersEngine(model, device=device)
        self._tokenizer, self._catalog = tokenizer, catalog
        self._pad = int(tokenizer.pad_token_id or 0)
        self._batch_tokens, self._cached_items = batch_tokens, cached_items
        self._items: dict[int, _Text] = {}
        self._scores: OrderedDict[str, dict[int, float]] = OrderedDict()
        self._cached_profiles = cached_profiles
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        folder: Path,
        catalog: ItemCatalog,
        *,
        device: str | None = None,
        engine: EngineName = "auto",
        **limits: Any,
    ) -> TextRanker:
        """Load the model in `folder` (safetensors, nothing from the network, no code from the folder).

        `device` None picks CUDA where torch finds it. `limits` are the limits of the constructor.
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
        ranker = cls(model.eval().to(device), tokenizer, catalog, device=device, **limits)
        try:
            ranker.engine = (
                Int8Engine(model, ranker._calibration()) if engine == "int8" else text_engine(model, device, engine)
            )
        except ValueError as error:
            raise RankerError(f"{folder.name}: {error}") from error
        return ranker

    def score(self, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """See `CrossEncoder.score`: the model's logit; each pair is read alone, whatever its batch."""
        if len(candidates) == 0:
            return np.empty(0, np.float32)
        words = profile_text(query, self._catalog)
        known = self._known_scores(words)
        missing = [row for row in dict.fromkeys(candidates.rows.tolist()) if row not in known]
        if missing:
            known.update(zip(missing, self._compute(words, missing).tolist(), strict=True))
        return np.array([known[row] for row in candidates.rows.tolist()], np.float32)

    def _known_scores(self, words: str) -> dict[int, float]:
        """Return what this profile's items scored before; the profile becomes the last to be forgotten."""
        if self._cached_profiles == 0:
            return {}
        with self._lock:
            known = self._scores.setdefault(words, {})
            self._scores.move_to_end(words)
            while len(self._scores) > self._cached_profiles:
                self._scores.popitem(last=False)
        return known

    def _compute(self, words: str, rows: list[int]) -> Floats:
        profile = self._encode([words])[0]
        pairs = []
        for item in self._item_texts(rows):
            pairs.append(self._joined(profile, item))
        lengths = np.fromiter((len(ids) for ids, _ in pairs), np.int64, len(pairs))
        multiple = self.engine.length_multiple
        batches = (
            budget_batches(lengths, self._batch_tokens)
            if multiple == 1
            else equal_batches(lengths, self._batch_tokens, multiple)
        )
        out = np.empty(len(pairs), np.float32)
        for batch in batches:
            out[batch] = self.engine.logits(*self._padded([pairs[at] for at in batch], multiple))
        return out

    def _padded(self, pairs: list[tuple[Ids, Ids]], multiple: int) -> tuple[Ints, Ints | None, Ints]:
        """Return tokens, types (None where the model has none) and mask, each int64[pairs, longest]."""
        longest = -(-max(len(ids) for ids, _ in pairs) // multiple) * multiple
        tokens = np.full((len(pairs), longest), self._pad, np.int64)
        types, mask = np.zeros_like(tokens), np.zeros_like(tokens)
        for at, (ids, kinds) in enumerate(pairs):
            tokens[at, : len(ids)], types[at, : len(ids)], mask[at, : len(ids)] = ids, kinds, 1
        return tokens, types if self._template.types is not None else None, mask

    def _calibration(self) -> list[dict[str, Tensor]]:
        """Return inputs that look like requests: texts of the catalog after profiles that name other items."""
        import torch

        rng = np.random.default_rng(0)
        rows = rng.permutation(len(self._catalog))[:_CALIBRATION_PAIRS].tolist()
        pairs = []
        for item in self._item_texts(rows):
            others = rng.integers(0, len(self._catalog), _CALIBRATION_TITLES)
            words = f"Liked: {'; '.join(self._catalog.title(int(other)) for other in others)}."
            profile = self._encode([words])[0]
            pairs.append(self._joined(profile, item))
        batches = []
        for at in range(0, len(pairs), 16):
            tokens, types, mask = (
                None if a is None else torch.from_numpy(a) for a in self._padded(pairs[at : at + 16], 1)
            )
            named = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
            batches.append({name: tensor for name, tensor in named.items() if tensor is not None})
        return batches

    def _item_texts(self, wanted: list[int]) -> list[_Text]:
        items = self._items
        if len(items) > self._cached_items:
            # Starting over costs one tokenisation per item; keeping count of use would cost every request.
            items = self._items = {}
        missing = [r for r in dict.fromkeys(wanted) if r not in items]
        if missing:
            found = self._encode([self._catalog.document(r) for r in missing])
            items.update(zip(missing, found, strict=True))
        return [items[r] for r in wanted]

    def _joined(self, profile: _Text, item: _Text) -> tuple[Ids, Ids]:
        own, theirs = longest_first(profile.length, item.length, self._room)
        return self._template.join(profile.ids[:own], item.ids[:theirs])

    def _encode(self, texts: list[str]) -> list[_Text]:
        cut = [t[: self._room * _CHARS_PER_TOKEN] for t in texts]
        with self._lock:  # a fast tokenizer keeps whether it truncates as state
            encoded = self._tokenizer(cut, add_special_tokens=False, truncation=False, verbose=False)
        return [_Text(np.asarray(ids[: self._room], np.int32), len(ids)) for ids in encoded["input_ids"]]
