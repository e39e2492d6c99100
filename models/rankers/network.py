"""The compressed cross-encoder's arithmetic: pure functions over a dict of named tensors.

History tokens attend to each other; every candidate attends to the history and to itself, never to another
candidate, so its logit does not depend on who else is in the call. Candidates share the history's keys and
values, which makes the isolation mask implicit and 100 candidates cost about a millisecond.
Pre-norm transformer (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture"); the output
layer starts at zero, so an untrained network adds nothing to the fusion head.

A parameter dict is exactly what safetensors stores. torch is imported inside the functions: importing this
module is cheap. Called by the compressed ranker (inference) and by training (autograd), which share every line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from models.rankers.history import HISTORY_EVENTS

if TYPE_CHECKING:
    from torch import Tensor

Parameters = dict[str, "Tensor"]

AGE_BUCKETS = 32
VALUE_BUCKETS = 8
EVENT_TYPES = 16
LABEL_SLOTS = 8


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """Sizes that fix every tensor. `ids` is the number of learned item vectors (0: content only)."""

    text_dim: int
    labels: int
    numbers: int
    features: int
    ids: int = 0
    dim: int = 64
    heads: int = 4
    layers: int = 2
    hidden: int = 128
    head_hidden: int = 32
    history: int = HISTORY_EVENTS

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for the artifact's configuration."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HistoryTensors:
    """Histories of B users, padded on the left to L: `rows` point into the item tokens (0 is padding)."""

    rows: Tensor
    types: Tensor
    values: Tensor
    ages: Tensor

    def to(self, device: str) -> HistoryTensors:
        """Return the same on another device."""
        return HistoryTensors(*(t.to(device) for t in (self.rows, self.types, self.values, self.ages)))

    def take(self, index: Tensor) -> HistoryTensors:
        """Return the users of `index`."""
        return HistoryTensors(self.rows[index], self.types[index], self.values[index], self.ages[index])


def initialise(shape: NetworkShape, *, seed: int) -> Parameters:
    """Return fresh parameters (float32, CPU); the same seed gives the same numbers."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float) -> Tensor:
        return torch.randn(*size, generator=generator) * scale

    d, h = shape.dim, shape.hidden
    out: Parameters = {
        "item.text": normal(d, shape.text_dim, scale=1.0),
        "item.label": normal(shape.labels + 1, d, scale=0.3),
        "item.number": normal(d, shape.numbers, scale=0.3),
        # Of an item without a vector of its own; the others lie in a table outside of the network (`id_vectors`).
        "item.id": torch.zeros(1, d),
        "history.type": normal(EVENT_TYPES, d, scale=0.02),
        "history.value": normal(VALUE_BUCKETS, d, scale=0.02),
        "history.age": normal(AGE_BUCKETS, d, scale=0.02),
        "history.position": normal(shape.history, d, scale=0.02),
        "history.start": normal(d, scale=0.02),
        "candidate.role": normal(d, scale=0.02),
        "out.norm": torch.ones(d),
        "out.weight": torch.zeros(d),
        "head.linear": torch.zeros(shape.features),
        "head.in": normal(shape.head_hidden, shape.features, scale=1 / math.sqrt(shape.features)),
        "head.in_bias": torch.zeros(shape.head_hidden),
        "head.out": torch.zeros(shape.head_hidden),
        "head.mean": torch.zeros(shape.features),
        "head.scale": torch.ones(shape.features),
    }
    for layer in range(shape.layers):
        at = f"layer{layer}."
        out[at + "norm1"], out[at + "norm2"] = torch.ones(d), torch.ones(d)
        out[at + "qkv"] = normal(3 * d, d, scale=1 / math.sqrt(d))
        out[at + "proj"] = normal(d, d, scale=0.5 / math.sqrt(d))
        out[at + "up"], out[at + "up_bias"] = normal(h, d, scale=1 / math.sqrt(d)), torch.zeros(h)
        out[at + "down"], out[at + "down_bias"] = normal(d, h, scale=0.5 / math.sqrt(h)), torch.zeros(d)
    out["item.label"][0] = 0.0
    return out


def with_ids(p: Parameters, rows: Tensor | None) -> Parameters:
    """Return the parameters with `rows` for the id slots to point into; as they are where there are none."""
    return p if rows is None else {**p, "item.id": rows}


def item_tokens(p: Parameters, text: Tensor, label_slots: Tensor, numbers: Tensor, id_slots: Tensor) -> Tensor:
    """Return one token per item, float32[items, dim]: projected text and numbers + mean label vector + id vector.

    `text` float32[items, text_dim] unit vectors; `label_slots` int64[items, slots] into the label table, 0 for
    none; `numbers` float32[items, numbers], standardised; `id_slots` int64[items] into `p["item.id"]`. Whoever has
    learned vectors puts the rows that these items need in its place (see `with_ids`).
    """
    import torch.nn.functional as F

    labels = F.embedding(label_slots, p["item.label"]).sum(dim=1)
    count = (label_slots > 0).sum(dim=1, keepdim=True).clamp(min=1)
    content = F.linear(text, p["item.text"]) + F.linear(numbers, p["item.number"]) + labels / count
    return content + F.embedding(id_slots, p["item.id"])


def head_logits(p: Parameters, features: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Return the fusion head's logits, shape of `features` without its last axis: linear plus a small MLP."""
    import torch.nn.functional as F

    x = (features - p["head.mean"]) / p["head.scale"]
    hidden = F.relu(F.linear(x, p["head.in"], p["head.in_bias"]))
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return x @ p["head.linear"] + hidden @ p["head.out"]


def attention_logits(
    p: Parameters, shape: NetworkShape, history: HistoryTensors, past: Tensor, own: Tensor, *, dropout: float = 0.0
) -> Tensor:
    """Return the attention logits float32[B, N] of the candidates with tokens `own` [B, N, dim].

    `past` is float32[B, L, dim], the item tokens of `history`. `dropout` is for training only.
    """
    memory, visible = _history_states(p, shape, history, past, dropout=dropout)
    x = own + p["candidate.role"]
    for layer in range(shape.layers):
        keys, values = memory[layer]
        q, k, v = _qkv(p, layer, shape, x)
        to_past = (q @ keys.transpose(-1, -2)).masked_fill(~visible[:, None, None, :], -1e9)
        to_self = (q * k).sum(dim=-1, keepdim=True)
        weights = _softmax_pair(to_past, to_self, scale=1 / math.sqrt(shape.dim // shape.heads))
        mixed = weights[..., :-1] @ values + weights[..., -1:] * v
        x = _residual(p, layer, x, mixed, dropout=dropout)
    return _norm(x, p["out.norm"]) @ p["out.weight"]


def _history_states(
    p: Parameters, shape: NetworkShape, history: HistoryTensors, past: Tensor, *, dropout: float
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return per layer the keys and values [B, heads, 1 + L, dim / heads] and which positions are visible."""
    import torch
    import torch.nn.functional as F

    batch, length = history.rows.shape
    x = past + F.embedding(history.types, p["history.type"]) + F.embedding(history.values, p["history.value"])
    x = x + F.embedding(history.ages, p["history.age"]) + p["history.position"][shape.history - length :]
    # A learned start token is always visible, so a user without history attends to something.
    x = torch.cat([p["history.start"].expand(batch, 1, -1), x], dim=1)
    visible = torch.cat([torch.ones(batch, 1, dtype=torch.bool, device=x.device), history.rows > 0], dim=1)
    hidden = torch.zeros(batch, 1, 1, length + 1, device=x.device).masked_fill(~visible[:, None, None, :], -1e9)
    memory = []
    for layer in range(shape.layers):
        q, k, v = _qkv(p, layer, shape, x)
        memory.append((k, v))
        if layer + 1 < shape.layers:  # nothing reads the history after the last layer's keys and values
            weights = torch.softmax((q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1]) + hidden, dim=-1)
            x = _residual(p, layer, x, weights @ v, dropout=dropout)
    return memory, visible


def _qkv(p: Parameters, layer: int, shape: NetworkShape, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    import torch.nn.functional as F

    joint = F.linear(_norm(x, p[f"layer{layer}.norm1"]), p[f"layer{layer}.qkv"])
    batch, length, _ = x.shape
    q, k, v = joint.view(batch, length, 3, shape.heads, shape.dim // shape.heads).permute(2, 0, 3, 1, 4)
    return q, k, v


def _residual(p: Parameters, layer: int, x: Tensor, mixed: Tensor, *, dropout: float) -> Tensor:
    import torch.nn.functional as F

    at = f"layer{layer}."
    joined = mixed.transpose(1, 2).reshape(x.shape)
    attended = F.linear(joined, p[at + "proj"])
    x = x + (F.dropout(attended, dropout) if dropout else attended)
    up = F.relu(F.linear(_norm(x, p[at + "norm2"]), p[at + "up"], p[at + "up_bias"]))
    down = F.linear(up, p[at + "down"], p[at + "down_bias"])
    return x + (F.dropout(down, dropout) if dropout else down)


def _softmax_pair(to_past: Tensor, to_self: Tensor, *, scale: float) -> Tensor:
    import torch

    return torch.softmax(torch.cat([to_past, to_self], dim=-1) * scale, dim=-1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.layer_norm(x, (x.shape[-1],), weight)
