"""The `auto` engine: times the exact engines once on this machine and keeps which was fastest.

The answer depends on model, machine, threads and library versions, so it is kept outside the artifact, which is
immutable and shared: in a folder of the node, in a file named by all of these. Knows nothing of texts. Called by the
text ranker when it loads.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.rankers.engines import EXACT, Calibration, EngineName, TextEngine, available, build_engine

_LOG = logging.getLogger("raycommend.engines")
_LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino")
_PAIRS, _TOKENS, _ROUNDS = 16, 96, 3
_AGREEMENT = 1e-3
"""An exact engine whose logits are further than this from the model's own, relative to their size, is not one."""


def fastest_exact(model: Any, device: str, calibration: Calibration, *, identity: str, kept: Path | None) -> TextEngine:
    """Return the fastest exact engine; the answer for model `identity` is looked up and kept in the folder `kept`.

    An engine that cannot be built, or does not agree with the model, is passed over.
    """
    names = [name for name in available(model, device=device) if name in EXACT]
    file = None if kept is None else kept / f"{_key(identity, device, names)}.json"
    before = _read(file, names)
    if before is not None or len(names) == 1:
        try:
            return build_engine(before or names[0], model, device, calibration)
        except Exception as error:  # what was kept may no longer work; measure anew
            _LOG.warning("engine %s was chosen before and fails with %s", before, type(error).__name__)
    return _measured(names, model, device, calibration, file)


def _measured(
    names: list[EngineName], model: Any, device: str, calibration: Calibration, file: Path | None
) -> TextEngine:
    tokens, types, mask = _probe(model.config)
    wanted = build_engine("transformers", model, device, calibration).logits(tokens, types, mask)
    seconds: dict[EngineName, float] = {}
    engines: dict[EngineName, TextEngine] = {}
    for name in names:
        try:
            engine = build_engine(name, model, device, calibration)
            off = float(np.abs(engine.logits(tokens, types, mask) - wanted).max())
        except Exception as error:  # a library that cannot run this model is a slower start, not a failed one
            _LOG.warning("engine %s cannot run this model: %s", name, type(error).__name__)
            continue
        if off > _AGREEMENT * max(1.0, float(np.abs(wanted).max())):
            _LOG.warning("engine %s is off by %g", name, off)
            continue
        engines[name] = engine
        seconds[name] = min(_seconds(engine, tokens, types, mask) for _ in range(_ROUNDS))
    best = min(seconds, key=lambda name: seconds[name])
    _LOG.info("engine %s is the fastest: %s", best, {n: round(s, 4) for n, s in seconds.items()})
    _write(file, best, seconds)
    return engines[best]


def _probe(config: Any) -> tuple[Any, Any, Any]:
    """Return a batch as serving sends it, one pair of it half as long as the others."""
    length = max(8, min(_TOKENS, int(getattr(config, "max_position_embeddings", _TOKENS)) - 2))
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_PAIRS, length)).astype(np.int64)
    mask = np.ones_like(tokens)
    tokens[0, length // 2 :] = int(config.pad_token_id or 0)
    mask[0, length // 2 :] = 0
    types = np.zeros_like(tokens) if getattr(config, "type_vocab_size", 0) > 1 else None
    return tokens, types, mask


def _seconds(engine: TextEngine, tokens: Any, types: Any, mask: Any) -> float:
    began = time.perf_counter()
    engine.logits(tokens, types, mask)
    return time.perf_counter() - began


def _key(identity: str, device: str, names: list[EngineName]) -> str:
    """Name everything that the answer depends on."""
    import torch

    parts = [identity, device, torch.get_num_threads(), os.cpu_count(), _processor(), *names]
    parts += [f"{name} {_version(name)}" for name in _LIBRARIES]
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return " ".join(next((at for at in lines if at.startswith(head)), "") for head in ("model name", "flags"))


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _read(file: Path | None, names: list[EngineName]) -> EngineName | None:
    """Return what was chosen before, or None where nothing was or it is no answer."""
    try:
        found = None if file is None else json.loads(file.read_text())["engine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in names else None


def _write(file: Path | None, best: EngineName, seconds: dict[EngineName, float]) -> None:
    if file is None:
        return
    body = json.dumps({"engine": best, "seconds": seconds}, sort_keys=True)
    partial = file.with_suffix(f".part{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(body)
        partial.replace(file)
    except OSError as error:  # only costs the measurement again
        _LOG.warning("the choice of an engine cannot be kept: %s", type(error).__name__)
