"""The ledger of one state folder: which processes belong to it, and how they are ended.

A process is ours if it is recorded here and still the same process, if its environment carries our marker, or if it
descends from such a one. Nothing is ever chosen by its name, so another Ray, HAProxy or Valkey on the machine is safe.
Knows nothing of Ray. Called by `up`, `down`, `status` and by the Ray runtime.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cluster import processes
from cluster.errors import OperatorError
from cluster.processes import ProcessId, Seen

Kind = Literal["driver", "ray", "engine", "haproxy", "other", "valkey"]
# Who ends first, and what share of the grace it gets. The driver tidies up by itself and takes longest. Ray restarts
# what dies beside it, so it goes before HAProxy; its agents ignore SIGTERM once the raylet is gone: waiting is idle.
# The store goes last, because everything else may still be writing to it, and gets time to finish its file.
_STAGES: tuple[tuple[tuple[Kind, ...], float], ...] = (
    (("driver",), 2.0),
    (("ray", "engine"), 0.3),
    (("haproxy", "other"), 0.3),
    (("valkey",), 1.0),
)
_ROUNDS = 3


class StateLocked(OperatorError):
    """Another `up` runs in this state folder."""


class StateUnusable(OperatorError):
    """The state folder cannot be made."""


class ProcessesRemain(OperatorError):
    """Processes of this state folder that would not end, not even by SIGKILL."""


@dataclass(frozen=True, slots=True)
class Record:
    """One process we started, or found to be ours."""

    pid: int
    started: int
    name: str
    kind: Kind

    @property
    def id(self) -> ProcessId:
        """What identifies the process."""
        return ProcessId(self.pid, self.started)


@dataclass(frozen=True, slots=True)
class Ended:
    """One process that was ended, and whether it had to be killed."""

    pid: int
    name: str
    kind: Kind
    killed: bool


class Ledger:
    """The processes of one state folder.

    Args:
        state: The state folder; it is created.
    """

    def __init__(self, state: Path) -> None:
        self.state = state.resolve()
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateUnusable(
                f"{self.state} cannot be made ({error.strerror}): choose another folder with `--set cluster.state=…`"
            ) from error
        self._file = self.state / "processes.json"

    def record(self, pid: int, name: str, kind: Kind) -> None:
        """Note a process for good before anything depends on it; raises `ProcessLookupError` if it does not run."""
        seen = processes.look(pid)
        if seen is None:
            raise ProcessLookupError(f"process {pid} ({name}) has ended already")
        kept = [r for r in self._read() if r.pid != pid and processes.is_running(r.id)]
        self._write([*kept, Record(pid, seen.id.started, name, kind)])

    def record_found(self) -> None:
        """Note everything of this folder that runs now, so that it is known even if its marker cannot be read later."""
        self._write(self.alive())

    def alive(self) -> list[Record]:
        """Return the processes of this folder that run now, recorded or found by their marker or family."""
        machine = processes.snapshot()
        recorded = {r.pid: r for r in self._read() if r.pid in machine and machine[r.pid].id == r.id}
        marked = {pid for pid in machine if processes.marker_of(pid) == str(self.state)}
        family = processes.descendants(recorded.keys() | marked, machine)
        # Whoever asks is not part of the answer, nor is the shell or test runner above it.
        family -= processes.lineage(os.getpid(), machine) - recorded.keys()
        return [recorded.get(pid) or _found(machine[pid]) for pid in sorted(family)]

    def end_all(self, *, grace_s: float = 10.0, kinds: Iterable[Kind] = get_args(Kind)) -> list[Ended]:
        """End every process of this folder but the calling one, stage by stage: SIGTERM, a share of `grace_s`, SIGKILL.

        Args:
            grace_s: How long a process may take to end by itself; the driver gets twice as long.
            kinds: What to end; everything by default.

        Raises:
            ProcessesRemain: Something survived; it is named.
        """
        wanted = frozenset(kinds)
        ended: list[Ended] = []
        for stage, share in _STAGES:
            ended += self._end_stage(wanted & frozenset(stage), grace_s=share * grace_s)
        rest = self._endable(wanted)
        self._write([r for r in self._read() if processes.is_running(r.id)])
        if rest:
            names = ", ".join(f"{r.name} (pid {r.pid})" for r in rest)
            raise ProcessesRemain(f"these processes of {self.state} would not end: {names}; end them by hand")
        return ended

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the state folder for as long as the block runs; the lock goes with the process, however it ends.

        Raises:
            StateLocked: Another process holds it; its pid is named.
        """
        with (self.state / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise StateLocked(
                    f"process {holder} already runs in {self.state}: stop it with `raycommend down`, "
                    "or choose another folder with `--set cluster.state=…`"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _end_stage(self, kinds: frozenset[Kind], *, grace_s: float) -> list[Ended]:
        ended: dict[ProcessId, Ended] = {}
        # Again, because what was asked to end may have started something in its last moment.
        for _ in range(_ROUNDS):
            members = self._endable(kinds)
            if not members:
                break
            _signal(members, signal.SIGTERM)
            stubborn = _wait(members, grace_s)
            _signal(stubborn, signal.SIGKILL)
            _wait(stubborn, 5.0)
            ended |= {m.id: Ended(m.pid, m.name, m.kind, m in stubborn) for m in members}
        return list(ended.values())

    def _endable(self, kinds: frozenset[Kind]) -> list[Record]:
        return [r for r in self.alive() if r.kind in kinds and r.pid != os.getpid()]

    def _read(self) -> list[Record]:
        try:
            content = json.loads(self._file.read_text())
        except FileNotFoundError:
            return []
        if content["boot"] != processes.boot_id():
            return []
        return [Record(**entry) for entry in content["processes"]]

    def _write(self, records: list[Record]) -> None:
        entries = [{"pid": r.pid, "started": r.started, "name": r.name, "kind": r.kind} for r in records]
        draft = self._file.with_suffix(f".{os.getpid()}.tmp")
        with draft.open("w") as file:
            json.dump({"boot": processes.boot_id(), "processes": entries}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._file)
        folder = os.open(self.state, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _found(seen: Seen) -> Record:
    """Describe a process that nobody recorded. Its name decides when it ends, never whether."""
    command = processes.command_of(seen.id.pid)
    return Record(seen.id.pid, seen.id.started, seen.name, _kind_of(f"{seen.name} {command}"))


def _kind_of(text: str) -> Kind:
    hints: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("valkey", ("valkey", "redis-server")),
        ("haproxy", ("haproxy ", "haproxy-")),
        ("engine", ("VLLM::", "EngineCore")),
        ("ray", ("ray::", "raylet", "gcs_server", "/ray/")),
    )
    return next((kind for kind, words in hints if any(word in text for word in words)), "other")


def _signal(members: list[Record], number: signal.Signals) -> None:
    for member in members:
        if processes.is_running(member.id):
            try:
                os.kill(member.pid, number)
            except ProcessLookupError:
                continue  # it ended between the look and the signal


def _wait(members: list[Record], timeout_s: float) -> list[Record]:
    """Wait until all have ended, at most `timeout_s`; return those that have not."""
    end = time.monotonic() + timeout_s
    while (rest := [m for m in members if processes.is_running(m.id)]) and time.monotonic() < end:
        time.sleep(0.02)
    return rest
