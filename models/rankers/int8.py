"""A BERT cross-encoder in int8 for the CPU: the linear layers in integers, everything between them in float32.

Weights have a scale per output, activations one per input channel that is calibrated once on texts of the catalog and
then fixed (Xiao et al. 2022, "SmoothQuant": what a channel is divided by goes into the weights). Nothing is scaled by
what else is in the batch, and pairs are batched with others of their own padded length, so a pair's score is
the same number in every batch. The last layer computes the first token alone: the head reads no other.
Knows nothing of texts or catalogs. Called by the text ranker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LENGTH_MULTIPLE = 8
"""Pairs are padded to a multiple of this many tokens, whatever batch they are in."""

_GELU_LOW = 0.17
"""GELU is nowhere below minus this."""


@dataclass(frozen=True, slots=True)
class _Linear:
    """One linear layer: `x * to_steps + 128.5`, cut to 0…255, is the integer input; the scale is in the weights."""

    to_steps: Tensor | None
    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor
    scale: float
    zero: int

    def __call__(self, x: Tensor, *, gelu: _Linear | None = None) -> Tensor:
        """Return float32 outputs, or with `gelu` the integer inputs of that next layer."""
        import torch

        if self.to_steps is not None:
            x = torch.addcmul(torch.tensor(128.5), x, self.to_steps).clamp_(0.0, 255.0).to(torch.uint8)
        weights = (self.packed, self.scales, self.zeros, self.bias)
        out = (1.0, 0, torch.float32, "none") if gelu is None else (gelu.scale, gelu.zero, torch.uint8, "gelu")
        done: Tensor = torch.ops.onednn.qlinear_pointwise(x, self.scale, self.zero, *weights, *out, [], "none")
        return done


class Int8Encoder:
    """Logits of a `BertForSequenceClassification`. Immutable after construction; threads may share it."""

    def __init__(self, model: Any, calibration: list[dict[str, Tensor]]) -> None:
        """Calibrate on the inputs of `calibration`. Raises ValueError when the model is of another architecture."""
        if model.config.model_type != "bert" or model.config.hidden_act != "gelu":
            raise ValueError(f"int8 reads BERT with GELU, not {model.config.model_type}; use the torch back end")
        self._model, self._heads = model, int(model.config.num_attention_heads)
        peaks = _peaks(model, calibration)
        self._layers = [_Layer.of(layer, peaks) for layer in model.bert.encoder.layer]

    def __call__(self, **inputs: Tensor) -> Tensor:
        """Return float32[pairs] of `input_ids`, `attention_mask` and, where the model has them, `token_type_ids`."""
        embedded = self._model.bert.embeddings(inputs["input_ids"], token_type_ids=inputs.get("token_type_ids"))
        mask = inputs["attention_mask"].bool()[:, None, None, :]
        x = embedded
        for number, layer in enumerate(self._layers):
            x = layer(x, mask, self._heads, only_first=number + 1 == len(self._layers))
        pooled = self._model.bert.pooler(x)
        logits: Tensor = self._model.classifier(pooled)[:, 0]
        return logits


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    proj: _Linear
    up: _Linear
    down: _Linear
    norm1: Any
    norm2: Any

    @classmethod
    def of(cls, layer: Any, peaks: dict[Any, Tensor]) -> _Layer:
        import torch

        own = layer.attention.self
        joined = [own.query, own.key, own.value]
        weight, bias = torch.cat([m.weight for m in joined]), torch.cat([m.bias for m in joined])
        output, up, down = layer.attention.output, layer.intermediate.dense, layer.output.dense
        return cls(
            _smoothed(weight, bias, peaks[own.query]),
            _smoothed(output.dense.weight, output.dense.bias, peaks[output.dense]),
            _smoothed(up.weight, up.bias, peaks[up]),
            _after_gelu(down.weight, down.bias, peaks[down]),
            output.LayerNorm,
            layer.output.LayerNorm,
        )

    def __call__(self, x: Tensor, mask: Tensor, heads: int, *, only_first: bool) -> Tensor:
        from torch.nn.functional import scaled_dot_product_attention

        pairs, length, dim = x.shape
        q, k, v = self.qkv(x).view(pairs, length, 3, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        if only_first:
            q, x = q[:, :, :1], x[:, :1]
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm1(self.proj(mixed.transpose(1, 2).reshape(x.shape)).add_(x))
        out: Tensor = self.norm2(self.down(self.up(x, gelu=self.down)).add_(x))
        return out


def _smoothed(weight: Tensor, bias: Tensor, peak: Tensor) -> _Linear:
    """Divide each input channel by (its peak / its weights' peak) ** ½, so that both sides lose little."""
    ratio = (peak.clamp(min=1e-5) / weight.abs().amax(dim=0).clamp(min=1e-5)).sqrt()
    scale = float((peak / ratio).max().clamp(min=1e-8)) / 127.0
    return _linear(weight * ratio, bias, scale, 128, to_steps=1.0 / (ratio * scale))


def _after_gelu(weight: Tensor, bias: Tensor, peak: Tensor) -> _Linear:
    """The layer before writes these integers itself, with one scale for all channels."""
    scale = (float(peak.max()) + _GELU_LOW) / 255.0
    return _linear(weight, bias, scale, round(_GELU_LOW / scale), to_steps=None)


def _linear(weight: Tensor, bias: Tensor, scale: float, zero: int, *, to_steps: Tensor | None) -> _Linear:
    import torch

    steps = _weight_steps()
    scales = weight.abs().amax(dim=1).clamp(min=1e-8) / steps
    whole = (weight / scales[:, None]).round().clamp(-steps, steps).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(whole, None)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    return _Linear(to_steps, packed, scales.contiguous(), zeros, bias.detach().clone(), scale, zero)


def _weight_steps() -> int:
    """Return how many steps a weight has on each side of zero.

    A CPU without VNNI adds two products of 8 bits in 16, where 2 × 255 × 127 is cut off; 2 × 255 × 63 fits.
    """
    import torch

    return 127 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 63


def _peaks(model: Any, calibration: list[dict[str, Tensor]]) -> dict[Any, Tensor]:
    """Return the largest magnitude of each input channel of each linear layer over real tokens."""
    import torch

    peaks: dict[Any, Tensor] = {}
    real: list[Tensor] = []

    def watch(module: Any, given: tuple[Tensor, ...]) -> None:
        found = given[0][real[-1]].abs().amax(dim=0)
        peaks[module] = found if module not in peaks else torch.maximum(peaks[module], found)

    linear = [m for m in model.bert.encoder.modules() if isinstance(m, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(watch) for module in linear]
    try:
        for inputs in calibration:
            real.append(inputs["attention_mask"].bool())
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if len(peaks) != len(linear):
        raise ValueError("int8 needs texts to calibrate on")
    return peaks
