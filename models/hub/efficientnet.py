"""EfficientNet-Lite0: turns its published PyTorch checkpoint into a folder that transformers loads.

The Lite networks are EfficientNets without squeeze-and-excitation and with ReLU6 (Tan and Le, "EfficientNet" (2019),
and Google's EfficientNet-Lite). transformers' EfficientNet always has that layer, so it gets weights that multiply by
exactly one. Called by the resolver; weights become safetensors and nothing of the checkpoint is run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.hub.entries import Entry
from models.hub.torch_file import read_tensors
from models.hub.uri import HubError
from models.progress import Progress, silent

DIMENSION = 1280
_PIXELS = 224
_BLOCKS = 16
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_ALWAYS_ONE = 40.0
"""The sigmoid of this is 1 in float32."""
_OUTER = {"_conv_stem": "embeddings.convolution", "_bn0": "embeddings.batchnorm"}
_OUTER |= {"_conv_head": "encoder.top_conv", "_bn1": "encoder.top_bn"}
_INNER = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}
_NAME = re.compile(r"(?:_blocks\.(?P<block>\d+)\.)?(?P<module>_\w+)\.(?P<leaf>\w+)")


def materialise_efficientnet(file: Path, target: Path, *, progress: Progress = silent) -> Path:
    """Convert the checkpoint `file` to a transformers folder at `target`, or reuse it when it is there and intact.

    Effect: atomic. Raises HubError for a file that is not an EfficientNet-Lite0.
    """
    entry = Entry(target)
    if entry.files() is not None:
        return target
    with entry.locked():
        if entry.files() is None:
            progress(f"convert {file.name}", 0, None)
            with entry.filled() as staging:
                _convert(file, staging)
    return target


def _convert(file: Path, folder: Path) -> None:
    from safetensors.numpy import save_file
    from transformers import EfficientNetConfig

    tensors = _renamed(read_tensors(file), file)
    for block in range(_BLOCKS):
        width = len(tensors[f"encoder.blocks.{block}.depthwise_conv.depthwise_norm.weight"])
        prefix = f"encoder.blocks.{block}.squeeze_excite"
        tensors[f"{prefix}.reduce.weight"] = np.zeros((1, width, 1, 1), np.float32)
        tensors[f"{prefix}.reduce.bias"] = np.zeros(1, np.float32)
        tensors[f"{prefix}.expand.weight"] = np.zeros((width, 1, 1, 1), np.float32)
        tensors[f"{prefix}.expand.bias"] = np.full(width, _ALWAYS_ONE, np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = EfficientNetConfig(
        image_size=_PIXELS,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=DIMENSION,
        hidden_act="relu6",
        squeeze_expansion_ratio=1e-6,
        architectures=["EfficientNetModel"],
    )
    config.save_pretrained(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSING, indent=1), "utf-8")


_PREPROCESSING = {
    "image_processor_type": "EfficientNetImageProcessor",
    "size": {"height": _PIXELS, "width": _PIXELS},
    "resample": 3,
    "do_center_crop": False,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "include_top": False,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}


def _renamed(tensors: dict[str, npt.NDArray[Any]], file: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the tensors under the names of transformers, without the classifier."""
    found = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        module = None if match is None else (_OUTER if match["block"] is None else _INNER).get(match["module"])
        if match is not None and module is not None:
            inside = "" if match["block"] is None else f"encoder.blocks.{match['block']}."
            found[f"{inside}{module}.{match['leaf']}"] = tensor
        elif not name.startswith("_fc."):
            raise HubError(f"{file.name}: {name} belongs to no EfficientNet-Lite0; use a folder with safetensors")
    wanted = {f"embeddings.batchnorm.{leaf}" for leaf in _NORM} | {"embeddings.convolution.weight"}
    blocks = {name.split(".")[2] for name in found if name.startswith("encoder.blocks.")}
    if not wanted <= found.keys() or blocks != {str(n) for n in range(_BLOCKS)}:
        raise HubError(f"{file.name}: not an EfficientNet-Lite0; use a folder with safetensors")
    if found.get("encoder.top_conv.weight", np.empty(0)).shape != (DIMENSION, 320, 1, 1):
        raise HubError(f"{file.name}: an EfficientNet-Lite of another size than 0; use a folder with safetensors")
    return found
