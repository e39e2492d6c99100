"""What a training under way has done so far, on disk, so that a kill costs an epoch and not the whole.

One folder per training, for its owner's eyes only, named by a digest of all that decides its outcome: another seed or
one more event is another training and finds nothing here. Files are written whole or not at all; one that cannot be
read counts as absent.
Knows nothing of models. Called by the trainings.
"""

from __future__ import annotations

import glob
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from pipelines.held import held_file, private, sweep

log = logging.getLogger("raycommend.training")

_ABANDONED_S = 7 * 86_400.0
"""Folders of trainings that nobody went on with are removed after this time."""
_LENT = ".lent"


class Checkpoint:
    """The kept state of one training."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`; it is made when something is kept."""
        self.folder = folder

    @classmethod
    def under(cls, root: Path, key: str) -> Checkpoint:
        """Return the checkpoint of the training `key` under `root`.

        Effect: removes trainings that were given up long ago, and what a killed one had lent out.
        """
        sweep(root.glob(f"*/*{_LENT}"))
        for other in root.glob("*"):
            if other.name != key and time.time() - other.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(other, ignore_errors=True)
        return cls(root / key)

    def keep_arrays(self, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep arrays by name. Effect: durable and whole when this returns."""
        with self._file(f"{name}.npz") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]] | None:
        """Return what `keep_arrays` kept, or None."""
        path = self.folder / f"{name}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            self._unreadable(path, error)
            return None

    def forget_arrays(self, prefix: str) -> None:
        """Remove all arrays whose name begins with `prefix`."""
        for path in self.folder.glob(f"{glob.escape(prefix)}*.npz"):
            path.unlink(missing_ok=True)

    def keep_state(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep tensors, numbers, texts and containers of them. Effect: durable and whole when this returns."""
        import torch

        with self._file(f"{name}.pt") as file:
            torch.save(dict(state), file)

    def state(self, name: str) -> dict[str, Any] | None:
        """Return what `keep_state` kept, or None. Tensors and plain values only: nothing in the file is run."""
        import torch

        path = self.folder / f"{name}.pt"
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch raises whatever its zip reader and unpickler raise
            self._unreadable(path, error)
            return None
        return found

    def lent(self, name: str, body: bytes) -> AbstractContextManager[Path]:
        """Lend `body` to other processes, as a file, for as long as the block runs; for what must not stay."""
        return held_file(self.folder / f"{name}{_LENT}", body)

    def clear(self) -> None:
        """Forget everything: the training is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> _Whole:
        return _Whole(private(self.folder) / name)

    def _unreadable(self, path: Path, error: Exception) -> None:
        log.warning("%s cannot be read (%s): this part is done again", path.name, type(error).__name__)


class _Whole:
    """A file that appears under its name only when it is complete and on disk."""

    def __init__(self, final: Path) -> None:
        self._final, self._draft = final, final.with_suffix(f".{os.getpid()}.part")

    def __enter__(self) -> Any:
        self._open = self._draft.open("wb")
        return self._open

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._open.flush()
            os.fsync(self._open.fileno())
        self._open.close()
        if kind is None:
            self._draft.replace(self._final)
        else:
            self._draft.unlink(missing_ok=True)
