"""The `compressed` ranker: a small cross-encoder over cached item tokens, fused with retrieval features.

Item tokens are computed once per release, so serving reads no text: 100 candidates cost about a millisecond on one
core. Runs on the GPU where there is one. Trained by `pipelines.training`; loaded through `load_ranker`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.candidates import Candidates
from models.catalog import ItemCatalog
from models.media.layout import Layout
from models.rankers.calibration import PlattScaling
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.history import History, recent_history
from models.rankers.id_vectors import BLOCK, IdVectors, StoredIds, WholeIds, write_ids
from models.rankers.inference import ServingNetwork
from models.rankers.inputs import history_columns, id_slots, label_slots, number_inputs
from models.rankers.network import NetworkShape, Parameters, initialise, item_tokens, with_ids
from models.rankers.statistics import ItemStatistics
from models.retrieval.query import RetrievalQuery

CONFIG_FILE = "ranker.json"
WEIGHTS_FILE = "ranker.safetensors"
IDS_TENSOR = "known_ids"

Floats = npt.NDArray[np.float32]


class RankerError(Exception):
    """A ranker artifact cannot be used; the message names the file and what does not fit."""


@dataclass(frozen=True, slots=True)
class CompressedModel:
    """Everything a trained compressed ranker consists of; `save` and `read` are inverses.

    `ids` holds the learned vectors of the items `known_ids`, wherever they lie; None where none are learned.
    """

    shape: NetworkShape
    parameters: Parameters
    labels: Sequence[str]
    numbers: Sequence[str]
    known_ids: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    calibration: PlattScaling | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    ids: IdVectors | None = None
    calibration_new: PlattScaling | None = None
    """Of lists that leave out what the user has, where it learned from both kinds: what is new is taken less often."""

    def calibration_of(self, query: RetrievalQuery) -> PlattScaling | None:
        """Return what makes a logit the probability that the candidate is taken next; None for all or for no query."""
        if self.calibration is None or self.calibration_new is None or not query.exclude_seen:
            return self.calibration
        return self.calibration_new

    def save(self, folder: Path) -> None:
        """Write `ranker.json`, `ranker.safetensors` and one file per shard of learned vectors into `folder`."""
        import torch
        from safetensors.torch import save_file

        tensors = {n: t.detach().cpu().contiguous() for n, t in self.parameters.items()}
        tensors[IDS_TENSOR] = torch.from_numpy(self.known_ids.view(np.int64).copy())
        save_file(tensors, str(folder / WEIGHTS_FILE))
        body: dict[str, Any] = {
            "backend": "compressed",
            "shape": self.shape.to_dict(),
            "features": list(FEATURE_NAMES),
            "labels": list(self.labels),
            "numbers": list(self.numbers),
            "calibration": asdict(self.calibration) if self.calibration else None,
            "calibration_new": asdict(self.calibration_new) if self.calibration_new else None,
            "notes": dict(self.notes),
        }
        if self.ids is not None:
            body["ids"] = write_ids(self.ids, self.shape.dim, folder)
        (folder / CONFIG_FILE).write_text(json.dumps(body, sort_keys=True, indent=1))

    @classmethod
    def read(cls, folder: Path) -> CompressedModel:
        """Read what `save` wrote. Raises RankerError when a file is missing, damaged or of another shape."""
        from safetensors.torch import load_file

        try:
            body = json.loads((folder / CONFIG_FILE).read_text())
            tensors = load_file(str(folder / WEIGHTS_FILE))
            shape = NetworkShape(**body["shape"])
        except Exception as error:  # safetensors raises its own types; the reason is kept as the cause
            raise RankerError(f"{folder.name}: cannot read {CONFIG_FILE} and {WEIGHTS_FILE}: {error}") from error
        if tuple(body["features"]) != FEATURE_NAMES:
            raise RankerError(f"{CONFIG_FILE}: trained on other features than this version builds; train again")
        known = tensors.pop(IDS_TENSOR).numpy().view(np.uint64)
        try:
            ids = _vectors(folder, body, tensors, shape)
        except (ValueError, KeyError, TypeError) as error:
            raise RankerError(f"{folder.name}: id vectors cannot be read: {error}") from error
        for name, fresh in initialise(shape, seed=0).items():
            if name not in tensors or tensors[name].shape != fresh.shape:
                raise RankerError(f"{WEIGHTS_FILE}: tensor {name} is missing or has another shape than {CONFIG_FILE}")
        calibration, of_new = (
            PlattScaling(**found) if (found := body.get(name)) else None for name in ("calibration", "calibration_new")
        )
        return cls(shape, tensors, body["labels"], body["numbers"], known, calibration, body["notes"], ids, of_new)


def _vectors(folder: Path, body: Mapping[str, Any], tensors: Parameters, shape: NetworkShape) -> IdVectors | None:
    """Return the learned vectors, mapped; an older artifact has them in one tensor, which leaves `tensors`."""
    if "ids" in body:
        return StoredIds(folder, body["ids"], shape.ids, shape.dim)
    if not shape.ids:
        return None
    table = tensors.get("item.id")
    if table is None or table.shape != (shape.ids + 1, shape.dim):
        raise ValueError(f"{WEIGHTS_FILE}: tensor item.id is missing or has another shape than {CONFIG_FILE}")
    tensors["item.id"] = table[:1].clone()
    return WholeIds(table.numpy())


class CompressedRanker:
    """Implements `CrossEncoder`. Immutable after construction; `score` may run in several threads."""

    def __init__(
        self,
        model: CompressedModel,
        catalog: ItemCatalog,
        embeddings: Floats,
        statistics: ItemStatistics,
        *,
        layout: Layout | None = None,
        device: str | None = None,
    ) -> None:
        """Compute the token of every item. `device` None picks CUDA where torch finds it, else the CPU.

        `layout` says where pictures and sounds lie in `embeddings`; None for texts alone.
        """
        import torch

        if embeddings.shape != (len(catalog), model.shape.text_dim):
            raise RankerError(
                f"embeddings {embeddings.shape} do not fit {len(catalog)} items of {model.shape.text_dim} dims; "
                f"train the ranker on the embeddings of this release"
            )
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._catalog, self._model = catalog, model
        self._features = FusionFeatures(catalog, embeddings, statistics, layout=layout)
        self._parameters = {n: t.to(self._device) for n, t in model.parameters.items()}
        with torch.inference_mode():
            tokens = self._all_tokens(embeddings, statistics)
            self._network = ServingNetwork(self._parameters, model.shape, tokens)
        self.score_kind = "probability" if model.calibration else "rank_only"

    @classmethod
    def load(
        cls,
        folder: Path,
        catalog: ItemCatalog,
        embeddings: Floats,
        statistics: ItemStatistics,
        *,
        layout: Layout | None = None,
        device: str | None = None,
    ) -> CompressedRanker:
        """Load the artifact in `folder` for one release. Raises RankerError when they do not fit each other."""
        return cls(CompressedModel.read(folder), catalog, embeddings, statistics, layout=layout, device=device)

    def score(self, query: RetrievalQuery, candidates: Candidates) -> Floats:
        """See `CrossEncoder.score`: calibrated probabilities, or logits where calibration was not possible."""
        if len(candidates) == 0:
            return np.empty(0, np.float32)
        history = recent_history(query, self._catalog, limit=self._model.shape.history)
        features = self._features.build(query, candidates, history=history)
        logits = self._logits(history, candidates.rows, features)
        calibration = self._model.calibration_of(query)
        return logits if calibration is None else calibration.apply(logits)

    def attention(self, query: RetrievalQuery, rows: npt.NDArray[np.int32]) -> Floats:
        """Return the attention logit alone, float32[len(rows)]; independent of the other rows."""
        history = recent_history(query, self._catalog, limit=self._model.shape.history)
        return self._logits(history, rows, None)

    def _logits(self, history: History, rows: npt.NDArray[np.int32], features: Floats | None) -> Floats:
        return self._network.logits(history_columns(history, len(history)), rows, features)

    def _all_tokens(self, embeddings: Floats, statistics: ItemStatistics, *, block: int = BLOCK) -> Any:
        """Return float32[1 + items, dim]; of all that tokens are made of only a block is on the device at a time."""
        import torch

        def tensor(column: npt.NDArray[Any]) -> Any:
            return torch.from_numpy(np.array(column)).to(self._device)

        labels = label_slots(self._catalog, self._model.labels)
        numbers = number_inputs(self._catalog, statistics, self._model.numbers)
        ids = id_slots(self._catalog, self._model.known_ids)
        tokens = torch.zeros(1 + len(embeddings), self._model.shape.dim, device=self._device)
        for at in range(0, len(embeddings), block):
            text, label, number = (tensor(column[at : at + block]) for column in (embeddings, labels, numbers))
            slots, position = np.unique(ids[at : at + block], return_inverse=True)
            rows = None if self._model.ids is None else tensor(self._model.ids.rows(slots))
            made = item_tokens(with_ids(self._parameters, rows), text, label, number, tensor(position))
            tokens[at + 1 : at + 1 + len(made)] = made
        return tokens
