"""Processes of this machine as the kernel describes them: identity, environment, family.

Knows nothing of Raycommend's parts. Called by the ledger, the port check and the preflight. Reads /proc, so Linux only.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARKER = "RAYCOMMEND_STATE"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for good: a pid is reused, a pid with its start time (clock ticks since boot) is not."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One process in a snapshot of the machine."""

    id: ProcessId
    parent: int
    name: str
    zombie: bool


def boot_id() -> str:
    """Return the id of this boot; a start time means nothing after the next one."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def look(pid: int) -> Seen | None:
    """Return what runs under `pid` now, or None where nothing does."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name is in parentheses and may itself hold spaces and parentheses; everything after the last one is plain.
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    return Seen(ProcessId(pid, int(fields[19])), int(fields[1]), head.partition("(")[2], fields[0] in "ZX")


def snapshot() -> dict[int, Seen]:
    """Return every process of the machine that has not ended, by pid."""
    seen = (look(int(entry)) for entry in os.listdir(_PROC) if entry.isdigit())
    return {s.id.pid: s for s in seen if s is not None and not s.zombie}


def is_running(process: ProcessId) -> bool:
    """Whether exactly this process still runs; a zombie has ended."""
    seen = look(process.pid)
    return seen is not None and seen.id == process and not seen.zombie


def marker_of(pid: int) -> str | None:
    """Return the state folder a process was started for, or None where it carries no marker or may not be read."""
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = f"{MARKER}=".encode()
    for entry in environment.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return None


def command_of(pid: int, *, limit: int = 100) -> str:
    """Return the command line of a process, shortened to `limit` characters; empty where it may not be read."""
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    line = " ".join(word for word in words if word).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def lineage(pid: int, machine: dict[int, Seen]) -> set[int]:
    """Return `pid` and all its ancestors."""
    line: set[int] = set()
    while pid in machine and pid not in line:
        line.add(pid)
        pid = machine[pid].parent
    return line


def descendants(pids: Iterable[int], machine: dict[int, Seen]) -> set[int]:
    """Return the given processes with all their descendants, as far as they are in the snapshot."""
    children: dict[int, list[int]] = {}
    for seen in machine.values():
        children.setdefault(seen.parent, []).append(seen.id.pid)
    found: set[int] = set()
    open_ = [pid for pid in pids if pid in machine]
    while open_:
        pid = open_.pop()
        if pid not in found:
            found.add(pid)
            open_ += children.get(pid, [])
    return found
