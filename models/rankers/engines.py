"""Engines of the `text` ranker: what turns a batch of token pairs into logits, whatever computes it.

`transformers` runs the model as it was loaded, of any architecture and on any device. `packed` runs BERT-like models on
a CPU: weights reordered once for oneDNN, query, key and value in one product, GELU inside the product before it, and
the last layer for the first token alone, the only one that the classifier reads. The arithmetic is the model's own in
float32, so scores agree to rounding. `int8` computes the linear layers in integers (see `int8`): other scores, nearly
the same order, so it is chosen by name only. Knows nothing of items or users. Called by the text ranker.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from models.rankers.int8 import LENGTH_MULTIPLE, Int8Encoder

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
EngineName = Literal["auto", "transformers", "packed", "int8"]

_PROBE_PAIRS, _PROBE_TOKENS = 16, 96


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


class PackedBertEngine:
    """BERT-like models in float32 on a CPU. Build it only where `can_pack`."""

    name, length_multiple = "packed", 1

    def __init__(self, model: Any) -> None:
        import torch

        bert, config = model.bert, model.config
        self._embeddings, self._pooler, self._classifier = bert.embeddings, bert.pooler.dense, model.classifier
        self._heads, self._dim = config.num_attention_heads, config.hidden_size
        self._layers = []
        with torch.inference_mode():
            for layer in bert.encoder.layer:
                own, out = layer.attention.self, layer.attention.output
                parts = (own.query, own.key, own.value)
                weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
                self._layers.append(
                    _PackedLayer(
                        _Linear(weight, bias),
                        _of(out.dense),
                        out.LayerNorm,
                        _of(layer.intermediate.dense),
                        _of(layer.output.dense),
                        layer.output.LayerNorm,
                    )
                )

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        import torch

        with torch.inference_mode():
            kinds = None if types is None else torch.from_numpy(types)
            x = self._embeddings(input_ids=torch.from_numpy(tokens), token_type_ids=kinds)
            hidden = None if mask.all() else torch.from_numpy(np.where(mask, 0.0, -1e9).astype(np.float32))
            for at, layer in enumerate(self._layers):
                x = self._layer(layer, x, hidden, only_first=at + 1 == len(self._layers))
            found: Floats = self._classifier(torch.tanh(self._pooler(x[:, 0])))[:, 0].numpy()
        return found

    def _layer(self, layer: _PackedLayer, x: Tensor, hidden: Tensor | None, *, only_first: bool) -> Tensor:
        import torch.nn.functional as F

        pairs, length, _ = x.shape
        joint = layer.qkv(x).view(pairs, length, 3, self._heads, self._dim // self._heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        if only_first:
            query, x = query[:, :, :1], x[:, :1]
        seen = None if hidden is None else hidden[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        x = layer.norm1(x + layer.proj(mixed.transpose(1, 2).reshape(pairs, -1, self._dim)))
        normed: Tensor = layer.norm2(x + layer.down(layer.up(x, gelu=True)))
        return normed


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


class _Linear:
    """A product whose weights lie as oneDNN wants them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        import torch

        self._bias = bias.detach()
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        import torch

        post, kind = ("gelu", "none") if gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, post, [], kind)
        return out


class _PackedLayer:
    """One encoder layer."""

    def __init__(self, qkv: _Linear, proj: _Linear, norm1: Any, up: _Linear, down: _Linear, norm2: Any) -> None:
        self.qkv, self.proj, self.norm1, self.up, self.down, self.norm2 = qkv, proj, norm1, up, down, norm2


def _of(linear: Any) -> _Linear:
    return _Linear(linear.weight, linear.bias)


def can_pack(model: Any, *, device: str) -> bool:
    """Whether `PackedBertEngine` computes what `model` computes: BERT's own layers, float32, on a CPU with oneDNN."""
    import torch

    config = model.config
    return bool(
        device == "cpu"
        and config.model_type == "bert"
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and hasattr(model, "bert")
        and next(model.parameters()).dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def text_engine(model: Any, device: str, name: EngineName = "auto") -> TextEngine:
    """Return the float32 engine of that name; `auto` times those that can run `model` and takes the fastest.

    Raises ValueError when `name` cannot run it.
    """
    plain = TransformersEngine(model, device=device)
    if name == "packed" and not can_pack(model, device=device):
        raise ValueError("the packed engine runs BERT-like models in float32 on a CPU, and this is none")
    if name == "transformers" or not can_pack(model, device=device):
        return plain
    packed = PackedBertEngine(model)
    if name == "packed":
        return packed
    engines: list[TextEngine] = [packed, plain]
    return min(engines, key=lambda engine: _seconds(engine, model.config))


def _seconds(engine: TextEngine, config: Any, *, rounds: int = 3) -> float:
    """Return the least time of a batch as serving sends it, after one to warm up."""
    length = min(_PROBE_TOKENS, int(config.max_position_embeddings) - 2)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_PROBE_PAIRS, length)).astype(np.int64)
    types, mask = np.zeros_like(tokens), np.ones_like(tokens)
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        engine.logits(tokens, types, mask)
        times.append(time.perf_counter() - began)
    return min(times[1:])
