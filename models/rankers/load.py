"""Loads whichever ranker an artifact holds. Called by the release bundle, evaluation and benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.compressed import CONFIG_FILE, CompressedRanker, RankerError
from models.rankers.engines import EngineName
from models.rankers.port import CrossEncoder
from models.rankers.statistics import ItemStatistics


def load_ranker(
    folder: Path,
    catalog: ItemCatalog,
    embeddings: npt.NDArray[np.float32],
    statistics: ItemStatistics,
    *,
    layout: Layout | None = None,
    device: str | None = None,
    compute: EngineName | None = None,
    choices: Path | None = None,
) -> CrossEncoder:
    """Return the ranker in `folder`, ready for one release's catalog, embeddings and statistics.

    `ranker.json` names the `backend`; a folder without it that holds a transformers `config.json` is a text
    ranker. `compute` there names what runs a text ranker (see `engines`; `auto` where it says nothing), unless it is
    given here; what `auto` measured is kept in the folder `choices`. `max_tokens` there is how long a pair it was
    trained on, and `fusion` what stands beside its logit (see `text_fusion`).
    `layout` says where pictures and sounds lie in `embeddings`; None for texts alone. `device` None picks CUDA where
    there is one. Raises RankerError naming the file that does not fit.
    """
    backend, body = _backend_of(folder)
    if backend == "compressed":
        return CompressedRanker.load(folder, catalog, embeddings, statistics, layout=layout, device=device)
    from models.rankers.text import TextRanker
    from models.rankers.text_fusion import FusedTextRanker, TextFusion

    limits = {"max_tokens": int(body["max_tokens"])} if "max_tokens" in body else {}
    engine = compute or body.get("compute", "auto")
    text = TextRanker.load(folder, catalog, device=device, engine=engine, choices=choices, **limits)
    if body.get("fusion") is None:
        return text
    return FusedTextRanker(text, TextFusion.of(body["fusion"]), catalog, embeddings, statistics, layout=layout)


def _backend_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """Return the back end and all that `ranker.json` says, where there is one."""
    file = folder / CONFIG_FILE
    if not file.exists():
        if (folder / "config.json").exists():
            return "text", {}
        raise RankerError(f"{folder.name}: neither {CONFIG_FILE} nor a transformers config.json; not a ranker")
    try:
        body = dict(json.loads(file.read_text()))
        backend, compute, tokens = body["backend"], body.get("compute", "auto"), body.get("max_tokens", 8)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RankerError(f"{folder.name}: {CONFIG_FILE} names no backend: {error!r}") from error
    if backend not in ("compressed", "text"):
        raise RankerError(f"{CONFIG_FILE}: unknown backend {backend!r}; known are compressed and text")
    if compute not in get_args(EngineName):
        raise RankerError(f"{CONFIG_FILE}: unknown compute {compute!r}; known are {', '.join(get_args(EngineName))}")
    if not isinstance(tokens, int) or not 8 <= tokens <= 8192:
        raise RankerError(f"{CONFIG_FILE}: max_tokens {tokens!r} is no number of tokens from 8 to 8192")
    return str(backend), body
