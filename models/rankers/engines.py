"""Engines of the `text` ranker: what turns a batch of token pairs into logits, whatever computes it.

Exact, to the rounding of float32: `transformers` (any model, any device), `packed` (BERT-like models on a CPU through
oneDNN), `onnx` and `openvino` (where those libraries are installed). `auto` is the fastest of them here. Of other
scores in nearly the same order, and therefore chosen by name only: `bf16` and `int8`, for BERT-like models on a CPU.
Knows nothing of items or users. Called by the text ranker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from models.rankers.exported import OnnxEngine, OpenVinoEngine, installed
from models.rankers.int8 import LENGTH_MULTIPLE, Int8Encoder
from models.rankers.packed import PackedBertEngine, can_pack, computes_bfloat16

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
EngineName = Literal["auto", "transformers", "packed", "onnx", "openvino", "bf16", "int8"]
Calibration = Callable[[], list[dict[str, "Tensor"]]]
"""Returns inputs that look like those to come."""

EXACT: tuple[EngineName, ...] = ("packed", "openvino", "onnx", "transformers")
"""Engines that `auto` chooses from."""
NAMED: tuple[EngineName, ...] = ("bf16", "int8")
"""Engines that compute other scores in nearly the same order."""


class TextEngine(Protocol):
    """Computes logits of padded batches; safe between threads."""

    name: str
    length_multiple: int
    """Pairs are padded to a multiple of this; above 1 only pairs that are equally long then share a batch."""

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """Return float32[B] for `tokens`, `types` and `mask` int64[B, L].

        `mask` is 0 at padding, which counts for nothing: a pair's logit does not depend on its batch.
        """
        ...


class TransformersEngine:
    """The model as transformers loaded it."""

    name, length_multiple = "transformers", 1

    def __init__(self, model: Any, *, device: str) -> None:
        self._model, self._device = model, device

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        import torch

        inputs = {"input_ids": tokens, "attention_mask": mask}
        if types is not None:
            inputs["token_type_ids"] = types
        with torch.inference_mode():
            sent = {name: torch.from_numpy(a).to(self._device) for name, a in inputs.items()}
            found: Floats = self._model(**sent).logits[:, 0].float().cpu().numpy()
        return found


class Int8Engine:
    """BERT-like models with integer products on a CPU, calibrated on inputs like those to come."""

    name, length_multiple = "int8", LENGTH_MULTIPLE

    def __init__(self, model: Any, calibration: list[dict[str, Tensor]]) -> None:
        import torch

        with torch.inference_mode():
            self._encoder = Int8Encoder(model, calibration)

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        import torch

        given = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
        with torch.inference_mode():
            sent = {name: torch.from_numpy(a) for name, a in given.items() if a is not None}
            found: Floats = self._encoder(**sent).numpy()
        return found


def available(model: Any, *, device: str) -> list[EngineName]:
    """Return the engines that can run `model` on `device` here, exact ones first."""
    on_cpu = device == "cpu"
    runs: dict[EngineName, bool] = {
        "packed": can_pack(model, device=device),
        "openvino": on_cpu and installed("openvino"),
        "onnx": on_cpu and installed("onnxruntime"),
        "transformers": True,
        "bf16": can_pack(model, device=device) and computes_bfloat16(),
        "int8": can_pack(model, device=device),
    }
    return [name for name in (*EXACT, *NAMED) if runs[name]]


def build_engine(name: EngineName, model: Any, device: str, calibration: Calibration) -> TextEngine:
    """Return the engine of that name. Raises ValueError when it cannot run `model` here."""
    if name not in available(model, device=device):
        raise ValueError(f"the {name} engine cannot run this model here: {_NEEDS.get(name, 'unknown name')}")
    if name == "packed":
        return PackedBertEngine(model)
    if name == "bf16":
        return PackedBertEngine(model, bfloat16=True)
    if name == "int8":
        return Int8Engine(model, calibration())
    if name == "onnx":
        return OnnxEngine(model)
    if name == "openvino":
        return OpenVinoEngine(model)
    return TransformersEngine(model, device=device)


_NEEDS: dict[EngineName, str] = {
    "packed": "it needs a BERT-like model in float32 on a CPU",
    "bf16": "it needs a BERT-like model in float32 on a CPU that computes bfloat16",
    "int8": "int8 reads BERT with GELU in float32 on a CPU",
    "onnx": "it needs a CPU and `pip install raycommend[engines]`",
    "openvino": "it needs a CPU and `pip install raycommend[engines]`",
}
