"""Files and folders that are there only while somebody works with them, and readable by their owner alone.

They may hold what users did. Whoever works with one holds a lock on it, which ends with the process, so what a kill
left behind is known for certain and is removed by the next start. Called by the trainings and the evaluation.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import BuildError


def private(folder: Path) -> Path:
    """Return the folder, made where it is missing. Effect: nobody but its owner can look into it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


@contextmanager
def held_file(path: Path, body: bytes) -> Iterator[Path]:
    """Yield a file that holds `body` for as long as the block runs; then it is gone, whatever happened.

    Raises BuildError where another process holds it.
    """
    private(path.parent)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        _hold(file.fileno(), path)
        try:
            file.truncate()
            file.write(body)
            file.flush()
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def held_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; what is left under its name when the block ends is removed, whatever happened.

    To keep it, rename it. Raises BuildError where another process holds it.
    """
    held = os.open(private(path), os.O_RDONLY)
    try:
        _hold(held, path)
        try:
            for left in path.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(held)


def _hold(opened: int, path: Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BuildError(f"{path}: another process is at the very same work; wait until it has ended") from error


def sweep(paths: Iterable[Path]) -> list[Path]:
    """Remove the files and folders that nobody holds, and return them."""
    return [path for path in paths if _swept(path)]


def _swept(path: Path) -> bool:
    try:
        held = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return True
    finally:
        os.close(held)
