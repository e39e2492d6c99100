"""The reaper: a tiny process that ends an engine's children when the process that started them is gone.

vLLM's EngineCore and Worker do not watch their parent, so a parent killed by `kill -9` would leave gigabytes running.
The reaper polls `/proc`: it remembers every process whose environment carries the owner's mark, and its descendants,
by pid and start time (names and environments change later, when processes rename themselves). When its own parent is
gone it kills exactly those. Runs as a script with the standard library alone; `Reaper` starts it from the owner.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable

MARK = "RAYCOMMEND_ENGINE_MARK"
_STARTING_S, _STEADY_S, _KILLING_S = 0.2, 1.0, 8.0

Processes = dict[int, tuple[int, str]]
"""pid → (parent's pid, start time in ticks since boot); pid and start time together name one process for good."""


def processes() -> Processes:
    """Return all processes of this machine that are not zombies."""
    found: Processes = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                if fields[0] != b"Z":
                    found[int(name)] = (int(fields[1]), fields[19].decode())
    return found


def descendants(roots: Iterable[int], table: Processes) -> set[int]:
    """Return the pids below `roots`, without them."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    out: set[int] = set()
    queue = list(roots)
    while queue:
        for child in children.get(queue.pop(), ()):
            if child not in out:
                out.add(child)
                queue.append(child)
    return out


def carries(pid: int, mark: bytes) -> bool:
    """Whether the process was started with `mark` in its environment.

    Not Python's resource tracker: the owner shares it with others, and it ends by itself when its pipe closes.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark not in file.read().split(b"\0"):
                return False
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"resource_tracker" not in file.read()
    except OSError:
        return False


def watch(parent: int, mark: bytes) -> None:
    """Remember the marked processes while `parent` lives; kill them when it is gone. Returns when none is left."""
    known: dict[int, str] = {}
    examined: set[tuple[int, str]] = set()
    pause = _STARTING_S
    while os.getppid() == parent:
        _remember(known, examined, mark)
        if select.select([sys.stdin], [], [], pause)[0]:
            command = os.read(sys.stdin.fileno(), 64)
            if not command or b"quit" in command:
                break
            if b"list" in command:
                _remember(known, examined, mark)
                print(*_alive(known), flush=True)
            else:
                pause = _STEADY_S
    ends = time.monotonic() + _KILLING_S
    while time.monotonic() < ends:
        _remember(known, examined, mark)
        alive = _alive(known)
        for pid in sorted(alive):  # parents before children, mostly: a parent would report its child's death
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            return
        time.sleep(0.05)


def _remember(known: dict[int, str], examined: set[tuple[int, str]], mark: bytes) -> None:
    table = processes()
    for pid, (_, start) in table.items():
        if (pid, start) not in examined and pid != os.getpid() and carries(pid, mark):
            known[pid] = start
    # A young process is looked at again: between fork and exec it still shows its parent's environment.
    examined.clear()
    examined.update((pid, start) for pid, (_, start) in table.items() if _age_s(start) > 5.0)
    living = [pid for pid, start in known.items() if pid in table and table[pid][1] == start]
    known.update({pid: table[pid][1] for pid in descendants(living, table)})


def _alive(known: dict[int, str]) -> list[int]:
    table = processes()
    return [pid for pid, start in known.items() if pid in table and table[pid][1] == start]


def _age_s(start: str) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(start) / os.sysconf("SC_CLK_TCK")


class Reaper:
    """The owner's end: starts the process, and the mark to put into the children's environment."""

    def __init__(self) -> None:
        """Start watching. Put `mark` under the name `MARK` into `os.environ` while the children are started."""
        self.mark = secrets.token_hex(16)
        command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), self.mark]
        # Its own session: a Ctrl-C at the terminal must not end it before its work is done.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
        )

    @property
    def pid(self) -> int:
        """Pid of the watching process."""
        return self._process.pid

    def children(self) -> set[int]:
        """Return the living marked processes and all their descendants; for the process ledger."""
        self._send(b"list\n")
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        return {int(pid) for pid in line.split()}

    def settle(self) -> None:
        """Say that all children have been started: poll less often from now on."""
        self._send(b"settle\n")

    def close(self) -> None:
        """End every child that is left, then the reaper. Takes up to a few seconds; harmless when repeated."""
        self._send(b"quit\n")
        try:
            self._process.wait(_KILLING_S + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, command: bytes) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(command)


if __name__ == "__main__":
    watch(int(sys.argv[1]), f"{MARK}={sys.argv[2]}".encode())
