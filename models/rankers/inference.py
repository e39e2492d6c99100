"""The compressed network as it is served: the same arithmetic as `network`, folded for one user at a time.

Norm gains, the softmax scale and the features' scaling are multiplied into the weights once; a request is one pass in
which its history and its candidates are rows of the same matrix, so that a hundred candidates cost some fifty small
operations instead of a hundred and thirty. A candidate row still reads only the history and itself. `tests` hold it
against `network` to 1e-4. Knows nothing of catalogs. Called by the compressed ranker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.rankers.network import NetworkShape, Parameters

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer, transposed for `x @ w`, with the gain of the norm before them multiplied in."""

    qkv: Tensor
    proj: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class ServingNetwork:
    """Logits of one user's candidates. Immutable after construction; threads may share it."""

    def __init__(self, p: Parameters, shape: NetworkShape, tokens: Tensor) -> None:
        """`p` and `tokens` (float32[1 + items, dim], row 0 zero) lie on the device that computes."""
        import torch

        self._shape, self._tokens = shape, tokens
        self._layers = [_folded(p, shape, number) for number in range(shape.layers)]
        self._out = p["out.norm"] * p["out.weight"]
        self._start, self._role = p["history.start"][None], p["candidate.role"]
        # One table for what an event adds to its item's token: type, value, age and position by their offsets.
        parts = [p["history.type"], p["history.value"], p["history.age"], p["history.position"]]
        self._event = torch.cat(parts)
        self._offsets = np.cumsum([0] + [len(part) for part in parts[:-1]])[:, None]
        joined = torch.cat([p["head.linear"][None], p["head.in"]]) / p["head.scale"]
        bias = torch.cat([torch.zeros_like(p["head.in_bias"][:1]), p["head.in_bias"]])
        self._head, self._head_bias = joined.t().contiguous(), bias - joined @ p["head.mean"]
        self._head_out = p["head.out"]

    def logits(self, history: npt.NDArray[np.int64], rows: npt.NDArray[np.int32], features: Floats | None) -> Floats:
        """Return float32[len(rows)]: attention plus, with `features` float32[len(rows), F], the fusion head.

        `history` is int64[4, L] as `history_columns` builds it, without padding; L may be 0.
        """
        import torch

        with torch.inference_mode():
            out = self._attention(history, rows)
            if features is not None:
                out += self._fusion(torch.from_numpy(features).to(self._tokens.device))
            found: Floats = out.float().cpu().numpy()
        return found

    def _attention(self, history: npt.NDArray[np.int64], rows: npt.NDArray[np.int32]) -> Tensor:
        import torch

        dim, device = self._shape.dim, self._tokens.device
        length = history.shape[1]
        positions = np.arange(self._shape.history - length, self._shape.history)
        named = np.concatenate([history[0], rows.astype(np.int64) + 1])
        events = np.concatenate([history[1:], positions[None]]) + self._offsets
        x = torch.empty(1 + len(named), dim, device=device)
        x[:1] = self._start
        torch.index_select(self._tokens, 0, torch.from_numpy(named).to(device), out=x[1:])
        first = 1 + length  # rows before are the user's past, the start token included
        if length:
            x[1:first] += self._event[torch.from_numpy(events).to(device)].sum(dim=0)
        x[first:] += self._role
        for number, layer in enumerate(self._layers):
            # Nothing reads what the last layer makes of the history.
            x = self._layer(layer, x, first, first if number + 1 == len(self._layers) else 0)
        return torch.layer_norm(x, (dim,)) @ self._out

    def _layer(self, layer: _Layer, x: Tensor, first: int, start: int) -> Tensor:
        """Return rows `start` and on after one layer; all of them read the `first` rows of the past."""
        import torch

        heads, dim = self._shape.heads, self._shape.dim
        joint = torch.mm(torch.layer_norm(x, (dim,)), layer.qkv).view(len(x), 3, heads, dim // heads)
        q, k, v = joint[start:].unbind(1)
        past = joint[:first]
        to_self = (q * k).sum(dim=-1)
        if start < first:
            to_self[: first - start] = -math.inf  # the past reads itself among its keys already
        to_past = torch.bmm(q.transpose(0, 1), past[:, 1].permute(1, 2, 0))
        weights = torch.softmax(torch.cat([to_past, to_self.t()[:, :, None]], dim=-1), dim=-1)
        mixed = torch.bmm(weights[:, :, :first], past[:, 2].transpose(0, 1))
        mixed += weights[:, :, first:] * v.transpose(0, 1)
        x = torch.addmm(x[start:], mixed.transpose(0, 1).reshape(-1, dim), layer.proj)
        up = torch.addmm(layer.up_bias, torch.layer_norm(x, (dim,)), layer.up).relu_()
        return torch.addmm(x + layer.down_bias, up, layer.down)

    def _fusion(self, features: Tensor) -> Tensor:
        import torch

        joined = torch.addmm(self._head_bias, features, self._head)
        return joined[:, 0] + torch.relu(joined[:, 1:]) @ self._head_out


def _folded(p: Parameters, shape: NetworkShape, number: int) -> _Layer:
    at = f"layer{number}."
    qkv = p[at + "qkv"] * p[at + "norm1"]
    qkv[: shape.dim] /= math.sqrt(shape.dim // shape.heads)
    return _Layer(
        qkv.t().contiguous(),
        p[at + "proj"].t().contiguous(),
        (p[at + "up"] * p[at + "norm2"]).t().contiguous(),
        p[at + "up_bias"],
        p[at + "down"].t().contiguous(),
        p[at + "down_bias"],
    )
