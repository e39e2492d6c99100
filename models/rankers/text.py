"""The `text` ranker: a transformers sequence-classification model reads profile text and item text together.

Works with any local folder that `AutoModelForSequenceClassification` loads with one label (bge-reranker,
MiniLM cross-encoders, one fine-tuned here). Item texts are tokenised once and cached; a request tokenises only the
profile, and scores are kept for a profile that asks again. float32 or less on the CPU, bfloat16 with
scaled-dot-product attention on a GPU; `engines` says what computes. Requests can be taken apart (see `apart`). Loaded
through `load_ranker`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.choice import fastest_exact
from models.rankers.compressed import RankerError
from models.rankers.engines import EngineName, TextEngine, build_engine
from models.rankers.kept import KeptScores
from models.rankers.llm import LlmEngine, is_causal, prompt_template
from models.rankers.pair_tokens import Pair, PairTokens, TextKey
from models.rankers.pairs import PairTemplate, budget_batches, equal_batches, pair_template
from models.rankers.profile_text import profile_text
from models.retrieval.query import RetrievalQuery

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]

_CALIBRATION_PAIRS, _CALIBRATION_TITLES = 64, 4
_GPU_BATCH_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class TextLimits:
    """Bounds of a text ranker."""

    max_tokens: int = 224
    """Of a pair; longer texts are cut, the longer one first."""
    batch_tokens: int = 1024
    """Of the pairs that an engine computes together, padding included. More does not fit the caches of a CPU core."""
    cached_items: int = 100_000
    """Items whose tokens are kept."""
    cached_profiles: int = 512
    """Profiles whose scores are kept; 0 keeps none."""
    cached_scores: int = 200_000
    """Scores that are kept of all profiles together."""

    def within(self, config: Any) -> TextLimits:
        """Return the limits with pairs no longer than the model of `config` reads."""
        most = int(getattr(config, "max_position_embeddings", 1 << 30)) - 2
        return replace(self, max_tokens=min(self.max_tokens, most))


class TextTask:
    """Implements `ScoringTask`: the pairs of one request that have no score yet, the longest first."""

    def __init__(
        self, words: str, keys: list[TextKey], known: dict[TextKey, float], pairs: dict[TextKey, Pair]
    ) -> None:
        self.words = words
        self._keys, self._known = keys, known
        self._waiting = sorted(pairs.items(), key=lambda one: len(one[1][0]))
        self.left = sum(len(ids) for ids, _ in pairs.values())

    def next_pairs(self, tokens: int, *, least: int) -> list[tuple[TextKey, Pair]]:
        """Take the longest that wait, while they fit in `tokens`, and `least` anyway."""
        taken: list[tuple[TextKey, Pair]] = []
        while self._waiting and (len(taken) < least or len(self._waiting[-1][1][0]) <= tokens):
            taken.append(self._waiting.pop())
            tokens -= len(taken[-1][1][0])
        return taken

    def learn(self, scores: dict[TextKey, float], tokens: int) -> None:
        """Take the scores of pairs that have so many tokens together."""
        self._known.update(scores)
        self.left -= tokens

    def scores(self) -> Floats:
        """See `ScoringTask.scores`."""
        return np.array([self._known[key] for key in self._keys], np.float32)


class TextRanker:
    """Implements `CrossEncoder` and `DivisibleRanker`. Threads may share it; the caches only gain equal entries."""

    score_kind = "rank_only"

    def __init__(
        self, engine: TextEngine, tokenizer: Any, template: PairTemplate, catalog: ItemCatalog, limits: TextLimits
    ) -> None:
        """Everything is loaded already (see `load`)."""
        self.engine = engine
        self._catalog, self._limits = catalog, limits
        self._tokens = _pair_tokens(tokenizer, template, catalog, limits, chat=engine.name == "llm")
        self._kept = KeptScores(profiles=limits.cached_profiles, scores=limits.cached_scores)

    @classmethod
    def load(
        cls,
        folder: Path,
        catalog: ItemCatalog,
        *,
        device: str | None = None,
        engine: EngineName = "auto",
        choices: Path | None = None,
        **limits: Any,
    ) -> TextRanker:
        """Load the model in `folder` (safetensors, nothing from the network, no code from the folder).

        A causal language model is asked yes or no (see `llm`), whatever `engine` says; any other is a sequence
        classifier. `device` None picks CUDA where torch finds it. `choices` is the folder where `auto` keeps what it
        measured. `limits` are fields of `TextLimits`. Raises RankerError naming the folder when it is neither.
        """
        import torch

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, tokenizer = _loaded(folder, device)
        usual = {"batch_tokens": _GPU_BATCH_TOKENS} if device.startswith("cuda") else {}
        bounds = TextLimits(**{**usual, **limits}).within(model.config)
        causal = is_causal(model.config)
        try:
            template = prompt_template(tokenizer) if causal else pair_template(tokenizer)
        except ValueError as error:
            raise RankerError(f"the tokenizer of this text ranker cannot be used: {error}") from error
        tokens = _pair_tokens(tokenizer, template, catalog, bounds, chat=causal)

        def calibration() -> list[dict[str, Tensor]]:
            return _calibration(catalog, tokens)

        found: TextEngine
        try:
            if causal:
                found = LlmEngine(model, tokenizer, device=device)
            elif engine == "auto":
                # How fast an engine is depends on the shape of a model and not on its weights.
                shape = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
                found = fastest_exact(model, device, calibration, identity=shape, kept=choices)
            else:
                found = build_engine(engine, model, device, calibration)
        except ValueError as error:
            raise RankerError(f"{folder.name}: {error}") from error
        return cls(found, tokenizer, template, catalog, bounds)

    def over(self, catalog: ItemCatalog, *_: object) -> TextRanker:
        """Return the same model over another catalog; what is kept is kept by text, so only new texts cost anything.

        It reads nothing else of a release, of which `FusedTextRanker.over` takes more.
        """
        other = copy(self)
        other._catalog, other._tokens = catalog, self._tokens.over(catalog)
        return other

    def score(self, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """See `CrossEncoder.score`: the model's logit; each pair is read alone, whatever its batch."""
        task = self.take_apart(query, candidates)
        while task.left:
            self.advance([task], tokens=task.left)
        return task.scores()

    def lengths(self, query: RetrievalQuery, rows: Sequence[int]) -> list[int]:
        """Return how many tokens each pair has."""
        return [len(ids) for ids, _ in self._tokens.of(profile_text(query, self._catalog), rows)]

    def take_apart(self, query: RetrievalQuery, candidates: Candidates) -> TextTask:
        """See `DivisibleRanker.take_apart`. What is kept of this profile needs no computing."""
        words = profile_text(query, self._catalog)
        rows = candidates.rows.tolist()
        keys = self._tokens.keys(rows)
        known = self._kept.of(words, keys)
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        pairs = zip(missing, self._tokens.of(words, list(missing.values())), strict=True) if missing else ()
        return TextTask(words, keys, known, dict(pairs))

    def advance(self, tasks: Sequence[TextTask], *, tokens: int) -> None:
        """See `DivisibleRanker.advance`."""
        taken: list[tuple[TextTask, list[tuple[TextKey, Pair]]]] = []
        for task in tasks:
            mine = task.next_pairs(tokens, least=0 if taken else 1)
            tokens -= sum(len(ids) for _, (ids, _) in mine)
            if mine:
                taken.append((task, mine))
        scores = iter(self._logits([pair for _, mine in taken for _, pair in mine]).tolist())
        for task, mine in taken:
            found = {key: next(scores) for key, _ in mine}
            task.learn(found, sum(len(ids) for _, (ids, _) in mine))
            self._kept.keep(task.words, found)

    def _logits(self, pairs: list[Pair]) -> Floats:
        """Compute all `pairs`, in batches within the budget."""
        lengths = np.fromiter((len(ids) for ids, _ in pairs), np.int64, len(pairs))
        multiple = self.engine.length_multiple
        batches = (
            budget_batches(lengths, self._limits.batch_tokens)
            if multiple == 1
            else equal_batches(lengths, self._limits.batch_tokens, multiple)
        )
        out = np.empty(len(pairs), np.float32)
        for batch in batches:
            out[batch] = self.engine.logits(*self._tokens.padded([pairs[at] for at in batch], multiple))
        return out


def _pair_tokens(
    tokenizer: Any, template: PairTemplate, catalog: ItemCatalog, limits: TextLimits, *, chat: bool
) -> PairTokens:
    """Return what makes pairs. In a `chat` no text of an item may become a role."""
    return PairTokens(
        tokenizer,
        template,
        catalog,
        max_tokens=limits.max_tokens,
        cached_items=limits.cached_items,
        split_special=chat,
    )


def _loaded(folder: Path, device: str) -> tuple[Any, Any]:
    """Return model and tokenizer of a folder: a classifier with one label or a causal model. Raises RankerError."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )

    if not (folder / "model.safetensors").exists() and not (folder / "model.safetensors.index.json").exists():
        raise RankerError(f"{folder.name}: model.safetensors is missing; save the model as safetensors")
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(folder), **local)
        kind = AutoModelForCausalLM if is_causal(config) else AutoModelForSequenceClassification
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
        model = kind.from_pretrained(
            str(folder),
            **local,
            use_safetensors=True,
            dtype=torch.bfloat16 if device.startswith("cuda") else torch.float32,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RankerError(f"{folder.name}: not a sequence-classification model: {error}") from error
    if not is_causal(config) and model.config.num_labels != 1:
        raise RankerError(f"config.json: {model.config.num_labels} labels; a ranker has exactly one")
    return model.eval().to(device), tokenizer


def _calibration(catalog: ItemCatalog, tokens: PairTokens) -> list[dict[str, Tensor]]:
    """Return inputs that look like requests: texts of the catalog after profiles that name other items."""
    import torch

    rng = np.random.default_rng(0)
    pairs = []
    for row in rng.permutation(len(catalog))[:_CALIBRATION_PAIRS].tolist():
        others = rng.integers(0, len(catalog), _CALIBRATION_TITLES)
        pairs += tokens.of(f"Liked: {'; '.join(catalog.title(int(other)) for other in others)}.", [row])
    batches = []
    for at in range(0, len(pairs), 16):
        ids, types, mask = (None if a is None else torch.from_numpy(a) for a in tokens.padded(pairs[at : at + 16], 1))
        named = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        batches.append({name: tensor for name, tensor in named.items() if tensor is not None})
    return batches
