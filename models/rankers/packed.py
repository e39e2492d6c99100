"""BERT-like cross-encoders on a CPU through oneDNN, in float32 or with products in bfloat16.

Weights are reordered once, query, key and value are one product, GELU happens inside the product before it, and the
last layer is computed for the first token alone, the only one that the classifier reads. In float32 the arithmetic is
the model's own, so scores agree to rounding. In bfloat16 products and attention take half the bits and half the time
where the CPU computes them; what flows between layers stays float32. oneDNN sums a row the same way whatever rows are
beside it, and pairs are batched with others of their own padded length, so a pair's score is the same in every batch.
Knows nothing of texts. Called through `engines`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_HIDDEN = -1e9


@dataclass(frozen=True, slots=True)
class _Linear:
    """A product whose weights lie as oneDNN wants them."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, parts: list[Any], dtype: Any) -> _Linear:
        """Join linear layers that read the same input."""
        import torch

        weight, bias = torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts])
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), None)
        return cls(packed, bias.detach().to(dtype))

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return the product in the type of the weights."""
        import torch

        post, kind = ("gelu", "none") if gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(self.bias.dtype), self.weight, self.bias, post, [], kind)
        return out


@dataclass(frozen=True, slots=True)
class _Layer:
    """One encoder layer."""

    qkv: _Linear
    proj: _Linear
    norm1: Any
    up: _Linear
    down: _Linear
    norm2: Any

    @classmethod
    def of(cls, layer: Any, dtype: Any) -> _Layer:
        own, out = layer.attention.self, layer.attention.output
        return cls(
            _Linear.of([own.query, own.key, own.value], dtype),
            _Linear.of([out.dense], dtype),
            out.LayerNorm,
            _Linear.of([layer.intermediate.dense], dtype),
            _Linear.of([layer.output.dense], dtype),
            layer.output.LayerNorm,
        )

    def __call__(self, x: Tensor, hidden: Tensor | None, heads: int, *, only_first: bool) -> Tensor:
        """Return float32[pairs, length or 1, dim] of `x` float32; `hidden` is added to the attention logits."""
        from torch.nn.functional import scaled_dot_product_attention

        pairs, length, dim = x.shape
        query, key, value = self.qkv(x).view(pairs, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if only_first:
            query, x = query[:, :, :1], x[:, :1]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=hidden)
        x = self.norm1(x + self.proj(mixed.transpose(1, 2).reshape(pairs, -1, dim)))
        out: Tensor = self.norm2(x + self.down(self.up(x, gelu=True)))
        return out


class PackedBertEngine:
    """Implements `TextEngine`. Build it only where `can_pack`, and in bfloat16 where `computes_bfloat16`."""

    def __init__(self, model: Any, *, bfloat16: bool = False) -> None:
        import torch

        self.name = "bf16" if bfloat16 else "packed"
        # Little padding, and batches without any need no mask.
        self.length_multiple = 8
        self._dtype = torch.bfloat16 if bfloat16 else torch.float32
        bert, self._classifier = model.bert, model.classifier
        self._embeddings, self._pooler = bert.embeddings, bert.pooler.dense
        self._heads = int(model.config.num_attention_heads)
        with torch.inference_mode():
            self._layers = [_Layer.of(layer, self._dtype) for layer in bert.encoder.layer]

    def logits(self, tokens: Ints, types: Ints | None, mask: Ints) -> Floats:
        """See `TextEngine.logits`."""
        import torch

        with torch.inference_mode():
            kinds = None if types is None else torch.from_numpy(types)
            x = self._embeddings(input_ids=torch.from_numpy(tokens), token_type_ids=kinds)
            hidden = None
            # Rounding to bfloat16 makes much of little: there a pair goes the same way whatever is beside it.
            if self._dtype != torch.float32 or not mask.all():
                added = np.where(mask, 0.0, _HIDDEN).astype(np.float32)
                hidden = torch.from_numpy(added).to(self._dtype)[:, None, None, :]
            for at, layer in enumerate(self._layers):
                x = layer(x, hidden, self._heads, only_first=at + 1 == len(self._layers))
            found: Floats = self._classifier(torch.tanh(self._pooler(x[:, 0])))[:, 0].numpy()
        return found

    def products(self, tokens: int) -> None:
        """Compute the products of so many tokens and nothing between them: no engine in this type can be faster."""
        import torch

        with torch.inference_mode():
            x = torch.zeros(tokens, self._layers[0].norm1.normalized_shape[0])
            for layer in self._layers[:-1]:
                layer.qkv(x)
                layer.proj(x)
                layer.down(layer.up(x, gelu=True))
            # All that the last layer makes of other tokens than the first is their keys and values.
            self._layers[-1].qkv(x)


def bert_like(model: Any) -> bool:
    """Whether `model` is BERT with GELU and absolute positions, in float32: what this module and `int8` compute."""
    import torch

    config = model.config
    return bool(
        config.model_type == "bert"
        and config.hidden_act == "gelu"
        and not getattr(config, "is_decoder", False)
        and getattr(config, "position_embedding_type", "absolute") in (None, "absolute")
        and hasattr(model, "bert")
        and next(model.parameters()).dtype == torch.float32
    )


def can_pack(model: Any, *, device: str) -> bool:
    """Whether `PackedBertEngine` computes what `model` computes: BERT's own layers on a CPU with oneDNN."""
    import torch

    return bool(
        device == "cpu"
        and bert_like(model)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself; elsewhere it is emulated, slower than float32."""
    import torch

    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, ask, lambda: False)() for ask in asks)
