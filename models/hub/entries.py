"""Cache entries: folders that are complete or absent, and that notice when they were damaged.

An entry is filled in a temporary folder beside it, gets a receipt (size, time and sha256 of every file) and is
renamed into place. Reading an entry compares sizes and times, and hashes only what was touched since: cheap, yet a
truncated file is noticed. Called by the resolver and the GGUF conversion. Knows nothing of what is inside.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.artifacts import sha256_of

RECEIPT = "receipt.json"


def tree_digest(files: Mapping[str, str]) -> str:
    """Return the digest of a folder from its files' sha256: sha256 over sorted `path NUL sha256 LF` lines.

    Paths are relative, with forward slashes, sorted by code point; nothing else (times, modes) counts.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\0{files[path]}\n".encode())
    return digest.hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below `folder` by relative path (the receipt left out)."""
    files = (p for p in folder.rglob("*") if p.is_file())
    hashes = {p.relative_to(folder).as_posix(): p for p in files}
    return {name: sha256_of(path) for name, path in sorted(hashes.items()) if name != RECEIPT}


@dataclass(frozen=True, slots=True)
class Entry:
    """One cache entry at `path`, which need not exist yet."""

    path: Path

    def files(self) -> dict[str, str] | None:
        """Return the sha256 of every file, or None when the entry is absent, incomplete or damaged."""
        try:
            receipt = json.loads((self.path / RECEIPT).read_text("utf-8"))["files"]
            intact = all(_is_intact(self.path / name, expected) for name, expected in receipt.items())
            return {name: expected["sha256"] for name, expected in receipt.items()} if intact else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this entry's lock: one maker at a time, so that two processes do not fetch the same twice.

        The lock ends with its process. Readers need none: an entry appears by rename, whole.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / f".{self.path.name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """Yield an empty folder to fill; it becomes the entry when the block ends well, else it is removed.

        Effect: all or nothing. Call it under a lock: rests of a maker that was killed are removed first.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rests = f".new-{self.path.name}-"
        for rest in self.path.parent.glob(f"{rests}*"):
            shutil.rmtree(rest, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=rests, dir=self.path.parent))
        try:
            yield staging
            files = {name: _stamp(staging / name, sha256) for name, sha256 in hash_files(staging).items()}
            (staging / RECEIPT).write_text(json.dumps({"files": files}, indent=1), "utf-8")
            if self.path.exists():  # damaged, or it would not be filled again
                os.replace(self.path, discarded := Path(tempfile.mkdtemp(prefix=rests, dir=self.path.parent)))
                shutil.rmtree(discarded, ignore_errors=True)
            os.replace(staging, self.path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _stamp(path: Path, sha256: str) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}


def _is_intact(path: Path, expected: Mapping[str, Any]) -> bool:
    stat = path.stat()
    if stat.st_size != expected["bytes"]:
        return False
    return bool(stat.st_mtime_ns == expected["mtime_ns"] or sha256_of(path) == expected["sha256"])
