"""The `text` ranker: a transformers sequence-classification model reads profile text and item text together.

Works with any local folder that `AutoModelForSequenceClassification` loads with one label (bge-reranker,
MiniLM cross-encoders, one fine-tuned here). Item texts are tokenised once and cached; a request tokenises only the
profile, and scores are kept for a profile that asks again. float32 or less on the CPU, bfloat16 with
scaled-dot-product attention on a GPU; `engines` says what computes. Requests can be taken apart (see `apart`). Loaded
through `load_ranker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.compressed import RankerError
from models.rankers.engines import EngineName, Int8Engine, TextEngine, TransformersEngine, text_engine
from models.rankers.kept import KeptScores
from models.rankers.pair_tokens import Pair, PairTokens
from models.rankers.pairs import budget_batches, equal_batches
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

_CALIBRATION_PAIRS, _CALIBRATION_TITLES = 64, 4


class TextTask:
    """Implements `ScoringTask`: the pairs of one request that have no score yet, the longest first."""

    def __init__(self, words: str, rows: list[int], known: dict[int, float], pairs: dict[int, Pair]) -> None:
        self.words = words
        self._rows, self._known = rows, known
        self._waiting = sorted(pairs.items(), key=lambda one: len(one[1][0]))
        self.left = sum(len(ids) for ids, _ in pairs.values())

    def next_pairs(self, tokens: int, *, least: int) -> list[tuple[int, Pair]]:
        """Take row and pair of the longest that wait, while they fit in `tokens`, and `least` anyway."""
        taken: list[tuple[int, Pair]] = []
        while self._waiting and (len(taken) < least or len(self._waiting[-1][1][0]) <= tokens):
            taken.append(self._waiting.pop())
            tokens -= len(taken[-1][1][0])
        return taken

    def learn(self, scores: dict[int, float], tokens: int) -> None:
        """Take the scores of pairs that have so many tokens together."""
        self._known.update(scores)
        self.left -= tokens

    def scores(self) -> Floats:
        """See `ScoringTask.scores`."""
        return np.array([self._known[row] for row in self._rows], np.float32)


class TextRanker:
    """Implements `CrossEncoder` and `DivisibleRanker`. Threads may share it; the caches only gain equal entries."""

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
        cached_scores: int = 200_000,
    ) -> None:
        """`model` and `tokenizer` are loaded already (see `load`); token limits are per pair and per batch.

        `engine` None runs the model as it is. `cached_profiles` profiles keep the scores of their items, all of them
        together at most `cached_scores`; 0 keeps none.
        """
        if model.config.num_labels != 1:
            raise RankerError(f"config.json: {model.config.num_labels} labels; a ranker has exactly one")
        limit = int(getattr(model.config, "max_position_embeddings", 1 << 30)) - 2
        try:
            self._tokens = PairTokens(tokenizer, catalog, max_tokens=min(max_tokens, limit), cached_items=cached_items)
        except ValueError as error:
            raise RankerError(f"the tokenizer of this text ranker cannot be used: {error}") from error
        self.engine = engine or TransformersEngine(model, device=device)
        self._catalog, self._batch_tokens = catalog, batch_tokens
        self._kept = KeptScores(profiles=cached_profiles, scores=cached_scores)

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
        task = self.take_apart(query, candidates)
        while task.left:
            self.advance([task], tokens=task.left)
        return task.scores()

    def take_apart(self, query: RetrievalQuery, candidates: Candidates) -> TextTask:
        """See `DivisibleRanker.take_apart`. What is kept of this profile needs no computing."""
        words = profile_text(query, self._catalog)
        rows = candidates.rows.tolist()
        known = self._kept.of(words)
        missing = [row for row in dict.fromkeys(rows) if row not in known]
        pairs = dict(zip(missing, self._tokens.of(words, missing), strict=True)) if missing else {}
        return TextTask(words, rows, known, pairs)

    def advance(self, tasks: Sequence[TextTask], *, tokens: int) -> None:
        """See `DivisibleRanker.advance`."""
        taken: list[tuple[TextTask, list[tuple[int, Pair]]]] = []
        for task in tasks:
            mine = task.next_pairs(tokens, least=0 if taken else 1)
            tokens -= sum(len(ids) for _, (ids, _) in mine)
            if mine:
                taken.append((task, mine))
        scores = iter(self._logits([pair for _, mine in taken for _, pair in mine]).tolist())
        for task, mine in taken:
            found = {row: next(scores) for row, _ in mine}
            task.learn(found, sum(len(ids) for _, (ids, _) in mine))
            self._kept.keep(task.words, found)

    def _logits(self, pairs: list[Pair]) -> Floats:
        """Compute all `pairs`, in batches within the budget."""
        lengths = np.fromiter((len(ids) for ids, _ in pairs), np.int64, len(pairs))
        multiple = self.engine.length_multiple
        batches = (
            budget_batches(lengths, self._batch_tokens)
            if multiple == 1
            else equal_batches(lengths, self._batch_tokens, multiple)
        )
        out = np.empty(len(pairs), np.float32)
        for batch in batches:
            out[batch] = self.engine.logits(*self._tokens.padded([pairs[at] for at in batch], multiple))
        return out

    def _calibration(self) -> list[dict[str, Tensor]]:
        """Return inputs that look like requests: texts of the catalog after profiles that name other items."""
        import torch

        rng = np.random.default_rng(0)
        rows = rng.permutation(len(self._catalog))[:_CALIBRATION_PAIRS].tolist()
        pairs = []
        for row in rows:
            others = rng.integers(0, len(self._catalog), _CALIBRATION_TITLES)
            words = f"Liked: {'; '.join(self._catalog.title(int(other)) for other in others)}."
            pairs += self._tokens.of(words, [row])
        batches = []
        for at in range(0, len(pairs), 16):
            tokens, types, mask = (
                None if a is None else torch.from_numpy(a) for a in self._tokens.padded(pairs[at : at + 16], 1)
            )
            named = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
            batches.append({name: tensor for name, tensor in named.items() if tensor is not None})
        return batches
