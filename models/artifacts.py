"""Artifacts: immutable, content-addressed folders with a manifest, kept under any fsspec URL.

`<url>/<tenant>/<kind>/<sha256>/manifest.json` lists every file with its size and sha256 and whatever else the
maker recorded (dims, counts, model ids, data window, parent). A node pulls an artifact by its reference into a
local cache and verifies it before anyone maps a byte of it. Called by pipelines (write) and serving (read).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.ids import is_valid_id

MANIFEST = "manifest.json"


class ArtifactError(Exception):
    """An artifact is missing, incomplete or not what its manifest says; the message names the file."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact on the local disk."""

    ref: str
    path: Path
    meta: Mapping[str, Any]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file as hex, reading it in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _verify(ref: str, path: Path, files: Mapping[str, Any]) -> None:
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{ref}: {name} missing")
        if file.stat().st_size != expected["bytes"] or sha256_of(file) != expected["sha256"]:
            raise ArtifactError(f"{ref}: {name} is truncated or damaged")


class ArtifactStore:
    """Puts and gets artifacts of one tenant. Safe for many readers; `put` of the same content is harmless."""

    def __init__(self, url: str, *, cache: Path, tenant: str = "main") -> None:
        """`url` is any fsspec URL or a plain path; `cache` is a local folder that only this node uses."""
        import fsspec

        if not is_valid_id(tenant):
            raise ArtifactError(f"tenant {tenant!r} is not a valid id")
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = f"{root.rstrip('/')}/{tenant}"
        self._local = "file" in self._fs.protocol
        self._cache = cache / tenant

    @property
    def node(self) -> Path:
        """A local folder of this node for what it finds out about artifacts; it may not exist yet."""
        return self._cache / "node"

    @property
    def place(self) -> tuple[Any, str]:
        """The fsspec filesystem and the folder in it that hold this tenant's artifacts."""
        return self._fs, self._root

    def put(self, kind: str, folder: Path, meta: Mapping[str, Any]) -> str:
        """Store the files of `folder` and return the reference `kind/sha256`. Effect: all or nothing."""
        files = {
            str(p.relative_to(folder)): {"sha256": sha256_of(p), "bytes": p.stat().st_size}
            for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name != MANIFEST
        }
        body = {"kind": kind, "files": files, "meta": dict(meta)}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        ref = f"{kind}/{hashlib.sha256(text.encode()).hexdigest()}"
        final = f"{self._root}/{ref}"
        if self._fs.exists(f"{final}/{MANIFEST}"):
            return ref
        for name in files:
            target = f"{final}/{name}"
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            partial = f"{target}.part{os.getpid()}"
            try:
                self._fs.put_file(str(folder / name), partial)
                self._fs.mv(partial, target)
            except BaseException:
                if self._fs.exists(partial):
                    self._fs.rm(partial)  # half a file on a full disk makes it no emptier
                raise
        # The manifest is written last: an artifact without one does not exist for any reader.
        with self._fs.open(f"{final}/{MANIFEST}.part", "w") as file:
            file.write(text)
        self._fs.mv(f"{final}/{MANIFEST}.part", f"{final}/{MANIFEST}")
        return ref

    def get(self, ref: str) -> Artifact:
        """Return the artifact, pulled and verified. Raises ArtifactError naming the file that is wrong."""
        body = self._manifest(ref)
        if self._local:
            path = Path(f"{self._root}/{ref}")
            _verify(ref, path, body["files"])
            return Artifact(ref, path, body["meta"])
        path = self._pull(ref, body["files"])
        try:
            _verify(ref, path, body["files"])
        except ArtifactError:
            # The copy of this node may have rotted while the original is whole: pull it again, once.
            shutil.rmtree(path)
            path = self._pull(ref, body["files"])
            _verify(ref, path, body["files"])
        return Artifact(ref, path, body["meta"])

    def discard(self, ref: str) -> None:
        """Remove an artifact and this node's copy. For damaged ones only: releases that name it cannot be loaded."""
        self._fs.rm(f"{self._root}/{ref}", recursive=True)
        shutil.rmtree(self._cache / ref, ignore_errors=True)

    def meta(self, ref: str) -> Mapping[str, Any]:
        """Return what the maker recorded, without verifying the files. Raises ArtifactError when it is missing."""
        return self._manifest(ref)["meta"]  # type: ignore[no-any-return]

    def list(self, kind: str) -> list[str]:
        """Return the references of all complete artifacts of a kind."""
        found = self._fs.glob(f"{self._root}/{kind}/*/{MANIFEST}")
        return sorted(f"{kind}/{p.split('/')[-2]}" for p in found)

    def age_s(self, ref: str) -> float:
        """Return how long ago an artifact was completed, by the clocks of this machine and of where it is kept."""
        made = self._fs.modified(f"{self._root}/{ref}/{MANIFEST}")
        return float(time.time() - made.timestamp())

    def write_text(self, name: str, text: str) -> None:
        """Write a small document beside the artifacts (`name` is a relative path). Effect: atomic."""
        target = f"{self._root}/{name}"
        self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        with self._fs.open(f"{target}.part{os.getpid()}", "w") as file:
            file.write(text)
        self._fs.mv(f"{target}.part{os.getpid()}", target)

    def read_text(self, name: str) -> str | None:
        """Return a small document, or None where there is none."""
        try:
            return str(self._fs.cat_file(f"{self._root}/{name}").decode())
        except FileNotFoundError:
            return None

    def texts(self, folder: str) -> tuple[str, ...]:
        """Return the names, without the ending, of the JSON documents in a folder."""
        found = self._fs.glob(f"{self._root}/{folder}/*.json")
        return tuple(sorted(p.split("/")[-1].removesuffix(".json") for p in found))

    def remove_text(self, name: str) -> None:
        """Remove a small document; harmless where there is none."""
        if self._fs.exists(f"{self._root}/{name}"):
            self._fs.rm(f"{self._root}/{name}")

    def _manifest(self, ref: str) -> dict[str, Any]:
        try:
            text = self._fs.cat_file(f"{self._root}/{ref}/{MANIFEST}").decode()
        except FileNotFoundError as error:
            raise ArtifactError(f"{ref}: manifest missing") from error
        if f"{ref.split('/')[0]}/{hashlib.sha256(text.encode()).hexdigest()}" != ref:
            raise ArtifactError(f"{ref}: {MANIFEST} does not match its digest")
        body: dict[str, Any] = json.loads(text)
        return body

    def _pull(self, ref: str, files: Mapping[str, Any]) -> Path:
        target = self._cache / ref
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            for name in files:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    self._fs.get_file(f"{self._root}/{ref}/{name}", str(staging / name))
                except FileNotFoundError as error:
                    raise ArtifactError(f"{ref}: {name} missing") from error
            staging.rename(target)
        except OSError:
            if not target.is_dir():  # another process of this node may have pulled it meanwhile
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target
