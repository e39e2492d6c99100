"""What a text training starts from: a model folder as a trainable model, and a teacher whose scores are learned.

Called by the training and by its workers. Knows nothing of events or sources.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.rankers.compressed import CONFIG_FILE, RankerError
from models.rankers.text import TextLimits, TextRanker
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase, given
from pipelines.training.text_fit import prepare
from pipelines.training.text_pairs import PairReader

Floats = npt.NDArray[np.float32]


def load_start(folder: Path, settings: TextTrainingSettings, *, seed: int) -> tuple[Any, Any]:
    """Return the model in `folder` under one label, with the layers the settings ask for, and its tokenizer.

    A model without a classifier gets a fresh one, drawn from `seed`. Raises RankerError naming what does not fit.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with torch.random.fork_rng(devices=[]), _quiet_transformers():
            torch.manual_seed(seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                num_labels=1,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
            )
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        prepare(model, settings)
    except (OSError, ValueError, RuntimeError, AttributeError, SafetensorError) as error:
        raise RankerError(f"{folder.name}: not a model that a text ranker can start from: {error}") from error
    return model.to(device), tokenizer


def reader_for(model: Any, tokenizer: Any, catalog: ItemCatalog, settings: TextTrainingSettings) -> PairReader:
    """Return what tokenises pairs for `model`: as long as the settings say, and no longer than it reads in serving."""
    limits = TextLimits(max_tokens=settings.max_tokens).within(model.config)
    return PairReader(tokenizer, catalog, max_tokens=limits.max_tokens)


def teacher_of(folder: Path, catalog: ItemCatalog) -> Callable[[TextCase, npt.NDArray[np.int32]], Floats]:
    """Return what asks the text ranker in `folder` for its logits of catalog rows.

    Not by the engine that happens to be fastest now: a training that is run again ends with the same bytes.
    """
    body = json.loads((folder / CONFIG_FILE).read_text()) if (folder / CONFIG_FILE).is_file() else {}
    limits: dict[str, Any] = {"max_tokens": int(body["max_tokens"])} if "max_tokens" in body else {}
    ranker = TextRanker.load(folder, catalog, engine="transformers", **limits)
    return lambda case, rows: ranker.score(case.query, given(rows))


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep the library's report off the terminal: that a fresh classifier is fresh is meant."""
    from transformers.utils import logging as talk

    before, bars = talk.get_verbosity(), talk.is_progress_bar_enabled()
    talk.set_verbosity_error()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        talk.set_verbosity(before)
        if bars:
            talk.enable_progress_bar()
