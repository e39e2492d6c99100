"""Engines of the `text` ranker: what turns a batch of token pairs into logits, whatever computes it.

Exact, to the rounding of float32: `transformers` (any model, any device; on a GPU in bfloat16 and compiled), `packed`
(BERT-like models on a CPU through oneDNN), `onnx` and `openvino` (where those libraries are installed). `auto` is the
fastest of them here. Of other scores in nearly the same order, and therefore chosen by name only: `bf16` and `int8`,
for BERT-like models on a CPU.
Knows nothing of items or users. Called by the text ranker.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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

_LOG = logging.getLogger("raycommend.engines")
_COMPILED_ROWS = (8, 16, 32, 64)
_COMPILED_MULTIPLE = 32
"""What a compiled model is given: so many pairs, and a multiple of so many tokens."""
_RECOMPILE_LIMIT = 4096
"""Above the number of these shapes: beyond its limit torch stops compiling without a word."""


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


class CompiledEngine:
    """As `TransformersEngine`, by `torch.compile` with CUDA graphs, which save the launches that small models wait for.

    A graph is of one shape, so there are few: pairs are padded to a multiple of `_COMPILED_MULTIPLE` tokens and batches
    to a power of two by rows whose scores are dropped. One thread owns the graphs, which PyTorch keeps per thread, and
    compiles a shape when it comes for the first time; no call waits for that, the model computes as it is meanwhile.
    So it does for good once something cannot be compiled, and the log says it once. Not run on a GPU yet.
    """

    name, length_multiple = "transformers", 1

    def __init__(self, model: Any, *, device: str) -> None:
        self._model, self._device = model, device
        self._eager = TransformersEngine(model, device=device)
        self._compiled: TransformersEngine | None = None
        self._failed = False
        self._pad = int(getattr(model.config, "pad_token_id", None) or 0)
        self._most = int(getattr(model.config, "max_position_embeddings", 1 << 30)) - 2
        self._thread = ThreadPoolExecutor(1, "compiled-ranker")
        self._lock = threading.Lock()
        self._asked: set[tuple[int, ...]] = set()
        self._waiting = 0  # shapes that are not compiled yet

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        found, step = [], _COMPILED_ROWS[-1]
        for at in range(0, len(tokens), step):
            part = slice(at, at + step)
            found.append(self._part(tokens[part], None if types is None else types[part], mask[part]))
        return np.concatenate(found)

    def settle(self) -> None:
        """Wait until every shape that came so far is compiled or given up; for tests and measurements."""
        self._thread.submit(lambda: None).result()

    def _part(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        begun = self._begin(self._padded(tokens, self._pad), self._padded(types, 0), self._padded(mask, 0))
        if begun is not None:
            try:
                return begun.result()[: len(tokens)]
            except Exception as error:
                self._give_up(error)
        return self._eager.logits(tokens, types, mask)

    def _begin(self, tokens: Ints, types: Ints | None, mask: Ints) -> Future[Floats] | None:
        """Compute in the thread of the graphs; None where there is no graph of this shape, or none at all."""
        with self._lock:
            if self._failed:
                return None
            if tokens.shape not in self._asked:
                self._asked.add(tokens.shape)
                self._waiting += 1
                self._thread.submit(self._compile, tokens, types, mask)
            if self._waiting or self._compiled is None:
                return None
            return self._thread.submit(self._compiled.logits, tokens, types, mask)

    def _compile(self, tokens: Ints, types: Ints | None, mask: Ints) -> None:
        import torch

        try:
            if not self._failed:
                if self._compiled is None:
                    compiled = torch.compile(self._model, mode="reduce-overhead", dynamic=False)
                    self._compiled = TransformersEngine(compiled, device=self._device)
                limits = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), _RECOMPILE_LIMIT)
                with torch.compiler.config.patch(limits):  # type: ignore[attr-defined]
                    self._compiled.logits(tokens, types, mask)  # compiles
                    self._compiled.logits(tokens, types, mask)  # records
        except Exception as error:  # whatever the compiler trips over, the model itself may do
            self._give_up(error)
        with self._lock:
            self._waiting -= 1

    def _give_up(self, error: Exception) -> None:
        with self._lock:
            before, self._failed, self._compiled = self._failed, True, None
        if not before:
            _LOG.warning("the text ranker runs without compilation, which failed with %s", type(error).__name__)

    def _padded(self, values: Ints | None, fill: int) -> Any:
        """Return `values` in a shape of the few; rows that are added repeat the first."""
        if values is None:
            return None
        rows = next(rows for rows in _COMPILED_ROWS if rows >= len(values))
        length = values.shape[1]
        wanted = max(length, min(-(-length // _COMPILED_MULTIPLE) * _COMPILED_MULTIPLE, self._most))
        longer = np.pad(values, ((0, 0), (0, wanted - length)), constant_values=fill)
        return np.concatenate([longer, np.repeat(longer[:1], rows - len(values), axis=0)])


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
    return (
        CompiledEngine(model, device=device) if device.startswith("cuda") else TransformersEngine(model, device=device)
    )


_NEEDS: dict[EngineName, str] = {
    "packed": "it needs a BERT-like model in float32 on a CPU",
    "bf16": "it needs a BERT-like model in float32 on a CPU that computes bfloat16",
    "int8": "int8 reads BERT with GELU in float32 on a CPU",
    "onnx": "it needs a CPU and `pip install raycommend[engines]`",
    "openvino": "it needs a CPU and `pip install raycommend[engines]`",
}
