"""The engines of the text ranker beside `sentence_transformers.CrossEncoder.predict`: one table of all of them.

`text_float32_ceiling` is what the products alone would reach on this CPU, however the rest is computed.

The very same pairs, weights, token limit and threads, kept scores off. Every engine that this machine can run is an
arm; exact ones compute the library's scores, the others are also held against float32 by how they order. Called by the
benchmark `ranker`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.rankers.engines import EXACT, NAMED, EngineName, available
from models.rankers.packed import PackedBertEngine
from models.rankers.profile_text import profile_text
from models.rankers.text import TextRanker
from models.retrieval.query import RetrievalQuery

Floats = npt.NDArray[np.float32]
Asked = list[tuple[RetrievalQuery, Candidates]]
Judged = list[tuple[RetrievalQuery, Candidates, int]]
"""Requests with the position of the item that came next."""
LIST = 24
"""Candidates of a request."""
LIMITS = {64: 1.6, 128: 1.8}
"""Token limits, and what is wanted there over the library."""

MOST_LOSS = 0.003
"""What an engine may lose in NDCG@10, at the upper end of the interval."""

_LIBRARY, _CEILING, _STUDENT = "library", "products", "student"
_HEAD_SCALE = 0.2
_CEILING_PAIRS = 12


def compare(
    context: BenchContext, encoder: Path, catalog: ItemCatalog, asked: Asked, *, trained: bool = False, layers: int = 3
) -> None:
    """Time each engine on the same pairs; a speed-up is its pairs/s over the library's, round by round.

    `text_speedup` is that of the engine which computes products in bfloat16, as a GPU does, where this CPU has them,
    else of the fastest exact one; `text_exact_speedup` is that of the exact engine that `auto` chose. `encoder` is the
    model itself where it is `trained`, else it gets a fresh head. `student_speedup` is that of the model cut to so many
    `layers`, as a distilled one has, on the exact engine that `auto` takes.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
        model = encoder if trained else _fresh_cross_encoder(encoder, Path(folder))
        auto = TextRanker.load(model, catalog, device="cpu")
        names = _engines(model)
        published = "bf16" if "bf16" in names else auto.engine.name
        student = _student_of(model, Path(small), layers)
        for limit, wanted in LIMITS.items():
            arms = {_LIBRARY: _library(model, catalog, asked, limit)}
            for name in names:
                arms[name] = _ours(model, catalog, asked, limit, name)
            arms[_STUDENT] = _ours(student, catalog, asked, limit, "auto")
            arms |= _ceiling(model, catalog, asked, limit) if "packed" in names else {}
            raw = context.interleave(f"text-{limit}", arms, max_s=300.0)
            for name in (_LIBRARY, *names, _STUDENT):
                context.target(f"text_{name}_pairs_per_s_{limit}", "arm", raw, name=name)
            for name in names:
                context.target(f"text_{name}_speedup_{limit}", "paired_ratio", raw, over=name, under=_LIBRARY)
            # The lower of the two limits is the one that a student is trained on.
            name, wish = ("student_speedup", Aim(at_least=3.0)) if limit == 64 else (f"student_speedup_{limit}", None)
            context.target(name, "paired_ratio", raw, over=_STUDENT, under=_LIBRARY, aim=wish)
            if _CEILING in arms:
                context.target(f"text_float32_ceiling_{limit}", "paired_ratio", raw, over=_CEILING, under=_LIBRARY)
            for name in (one for one in names if one in NAMED):
                kept = _agreement(context, model, catalog, asked, limit, name)
                context.target(f"text_{name}_agreement_{limit}", "array_mean", kept)
            ours = {"text_speedup": published, "text_exact_speedup": auto.engine.name}
            for figure, name in ours.items():
                aim = Aim(at_least=wanted)
                context.target(f"{figure}_{limit}", "paired_ratio", raw, over=name, under=_LIBRARY, aim=aim)
    context.facts |= {
        "text_engine": published,
        "text_auto": auto.engine.name,
        "text_exact": [name for name in names if name in EXACT],
        "text_weights": "trained" if trained else "the release's encoder under a fresh head: times depend on no weight",
    }


def judge(context: BenchContext, model: Path, catalog: ItemCatalog, judged: Judged) -> None:
    """Hold the engines that are not exact against float32 by NDCG@10 over the same lists."""
    limit = max(LIMITS)

    def scores(name: EngineName) -> list[Floats]:
        ranker = TextRanker.load(model, catalog, device="cpu", engine=name, max_tokens=limit, cached_profiles=0)
        return [ranker.score(query, found) for query, found, _ in judged]

    places = [at for _, _, at in judged]
    exact = scores("packed")
    context.target("text_exact_ndcg10", "array_mean", context.save_array("ndcg-exact", ndcg(exact, places)))
    for name in (one for one in _engines(model) if one in NAMED):
        lost = ndcg(exact, places) - ndcg(scores(name), places)
        kept = context.save_array(f"ndcg-loss-{name}", lost)
        aim = Aim(at_most=MOST_LOSS, on="ci95")
        context.target(f"text_{name}_ndcg_loss", "array_mean", kept, aim=aim)
    context.facts["text_judged_lists"] = len(judged)


def ndcg(scores: Sequence[Floats], places: Sequence[int], *, k: int = 10) -> npt.NDArray[np.float64]:
    """Return NDCG@k per list, where one item is right: that at its place. Ties count against it."""
    ranks = np.array([np.sum(one >= one[at]) - 1 for one, at in zip(scores, places, strict=True)])
    return np.where(ranks < k, 1.0 / np.log2(ranks + 2.0), 0.0)


def _engines(model: Path) -> list[EngineName]:
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(str(model), local_files_only=True)
    return available(loaded, device="cpu")


def _fresh_cross_encoder(encoder: Path, folder: Path) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(str(encoder), num_labels=1, local_files_only=True)
        model.classifier.weight.data.normal_(0.0, _HEAD_SCALE)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(str(encoder), local_files_only=True).save_pretrained(str(folder))
    return folder


def _student_of(model: Path, folder: Path, layers: int) -> Path:
    """Write the model with fewer layers, as the text training drops them."""
    from pipelines.training.settings import TextTrainingSettings
    from pipelines.training.text_start import load_start

    small, tokenizer = load_start(model, TextTrainingSettings(layers=layers), seed=0)
    small.to("cpu").save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def _library(model: Path, catalog: ItemCatalog, asked: Asked, limit: int) -> Callable[[], float]:
    from sentence_transformers import CrossEncoder

    encoder = CrossEncoder(str(model), max_length=limit, device="cpu", local_files_only=True)
    pairs: list[Sequence[str]] = [
        (profile_text(query, catalog), catalog.document(int(row))) for query, found in asked for row in found.rows
    ]

    def arm() -> float:
        began = time.perf_counter()
        encoder.predict(pairs, show_progress_bar=False)
        return len(pairs) / (time.perf_counter() - began)

    return arm


def _ceiling(model: Path, catalog: ItemCatalog, asked: Asked, limit: int) -> dict[str, Callable[[], float]]:
    """Return an arm that computes the float32 products of the very same tokens, without padding, and nothing else."""
    ranker = TextRanker.load(model, catalog, device="cpu", engine="packed", max_tokens=limit)
    engine = ranker.engine
    assert isinstance(engine, PackedBertEngine)
    tokens = [ranker.lengths(query, found.rows.tolist()) for query, found in asked]
    count = sum(map(len, tokens))

    def arm() -> float:
        began = time.perf_counter()
        for lengths in tokens:
            for at in range(0, len(lengths), _CEILING_PAIRS):
                engine.products(sum(lengths[at : at + _CEILING_PAIRS]))
        return count / (time.perf_counter() - began)

    return {_CEILING: arm}


def _agreement(
    context: BenchContext, model: Path, catalog: ItemCatalog, asked: Asked, limit: int, name: EngineName
) -> str:
    """Keep per list the rank correlation (Spearman) of an engine with float32; returns the file name."""
    exact, other = (
        TextRanker.load(model, catalog, device="cpu", engine=one, max_tokens=limit) for one in ("packed", name)
    )
    found = []
    for query, candidates in asked:
        ranks = [ranker.score(query, candidates).argsort().argsort() for ranker in (exact, other)]
        found.append(float(np.corrcoef(*ranks)[0, 1]))
    return context.save_array(f"agreement-{name}-{limit}", found)


def _ours(model: Path, catalog: ItemCatalog, asked: Asked, limit: int, name: Any) -> Callable[[], float]:
    ranker = TextRanker.load(model, catalog, device="cpu", engine=name, max_tokens=limit, cached_profiles=0)
    count = sum(len(found) for _, found in asked)

    def arm() -> float:
        began = time.perf_counter()
        for query, found in asked:
            ranker.score(query, found)
        return count / (time.perf_counter() - began)

    return arm
