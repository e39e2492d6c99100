"""Text cross-encoders through ONNX Runtime and OpenVINO, where they are installed (`pip install raycommend[engines]`).

The model is written as ONNX once, in memory, by tracing; both libraries read that. A BERT is traced in a form that
computes its last layer for the first token alone (see `packed`), any other model as transformers runs it. Both are
told to compute in float32. Knows nothing of texts. Called through `engines`.
"""

from __future__ import annotations

import importlib.util
import io
import threading
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from models.rankers.packed import bert_like

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_OPSET = 17
_TRACED_LENGTH = 16
_HIDDEN = -1e9
# The tracer keeps its state in globals.
_TRACING = threading.Lock()


class OnnxEngine:
    """Implements `TextEngine` with ONNX Runtime."""

    name, length_multiple = "onnx", 1

    def __init__(self, model: Any) -> None:
        """Use as many threads as torch does now. Raises ImportError where ONNX Runtime is not installed."""
        import onnxruntime
        import torch

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that spin between two requests would take the cores from the rest of a replica.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(as_onnx(model), options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        given = _named(tokens, types, mask)
        found: Floats = self._session.run(None, {name: given[name] for name in self._names})[0]
        return found


class OpenVinoEngine:
    """Implements `TextEngine` with OpenVINO."""

    name, length_multiple = "openvino", 1

    def __init__(self, model: Any) -> None:
        """Use as many threads as torch does now. Raises ImportError where OpenVINO is not installed."""
        import openvino
        import torch

        core = openvino.Core()
        read = core.read_model(io.BytesIO(as_onnx(model)))
        threads = torch.get_num_threads()
        wanted = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self._compiled = core.compile_model(read, "CPU", wanted)
        self._names = [one.get_any_name() for one in self._compiled.inputs]
        self._own = threading.local()

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        given = _named(tokens, types, mask)
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        answer = self._own.request.infer([given[name] for name in self._names])
        found: Floats = answer[0].copy()  # the next call writes into the same memory
        return found


def _named(tokens: Ints, types: Ints | None, mask: Ints) -> dict[str, Ints]:
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(tokens) if types is None else types,
    }


def installed(module: str) -> bool:
    """Whether an optional library is there, without importing it."""
    return importlib.util.find_spec(module) is not None


def as_onnx(model: Any) -> bytes:
    """Return `model` as ONNX: `input_ids`, `attention_mask` and perhaps `token_type_ids` int64[B, L] → `logits` [B]."""
    import torch

    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    traced = _traced(model).eval()
    ones = torch.ones(2, _TRACED_LENGTH, dtype=torch.long)
    axes = {name: {0: "pairs", 1: "tokens"} for name in names} | {"logits": {0: "pairs"}}
    written = io.BytesIO()
    with _TRACING, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # about shapes that the axes below free again
        torch.onnx.export(
            traced,
            (*[ones] * len(names),),
            written,  # type: ignore[arg-type]
            dynamo=False,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=_OPSET,
        )
    return written.getvalue()


def _traced(model: Any) -> Any:
    """Return a module of one or two or three inputs; defined here because torch is imported on demand."""
    import torch
    from torch.nn.functional import gelu, scaled_dot_product_attention

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, types: Any = None) -> Any:
            more = {} if types is None else {"token_type_ids": types}
            return self.model(input_ids=ids, attention_mask=mask, **more).logits[:, 0]

    class FirstTokenLast(Whole):
        def forward(self, ids: Any, mask: Any, types: Any = None) -> Any:
            bert, heads = self.model.bert, model.config.num_attention_heads
            own = bert.embeddings
            kinds = own.token_type_embeddings(torch.zeros_like(ids) if types is None else types)
            x = own.LayerNorm(
                own.word_embeddings(ids) + kinds + own.position_embeddings.weight[: ids.shape[1]].unsqueeze(0)
            )
            hidden = ((1 - mask.float()) * _HIDDEN)[:, None, None, :]
            for layer in bert.encoder.layer:
                attention, out = layer.attention.self, layer.attention.output
                key, value = attention.key(x), attention.value(x)
                if layer is bert.encoder.layer[-1]:
                    x = x[:, :1]
                query, key, value = (
                    t.reshape(t.shape[0], -1, heads, t.shape[2] // heads).transpose(1, 2)
                    for t in (attention.query(x), key, value)
                )
                mixed = scaled_dot_product_attention(query, key, value, attn_mask=hidden)
                x = out.LayerNorm(x + out.dense(mixed.transpose(1, 2).reshape(x.shape)))
                x = layer.output.LayerNorm(x + layer.output.dense(gelu(layer.intermediate.dense(x))))
            return self.model.classifier(torch.tanh(bert.pooler.dense(x[:, 0])))[:, 0]

    return FirstTokenLast() if bert_like(model) else Whole()
