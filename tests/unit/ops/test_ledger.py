"""The ledger ends what is its own, and nothing else. Real processes throughout: a fake kernel would prove nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import processes
from cluster.ledger import Ledger, StateLocked
from cluster.processes import MARKER, ProcessId

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
DEAF = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


class Nursery:
    """Starts processes and makes sure that none outlives the test."""

    def __init__(self) -> None:
        self.children: list[subprocess.Popen[str]] = []

    def start(self, command: list[str], **environment: str) -> int:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child.pid

    def returncode(self, pid: int) -> int:
        return next(child for child in self.children if child.pid == pid).wait(5)

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    found = Nursery()
    yield found
    found.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "state")


def test_a_recorded_process_is_ended_politely(ledger: Ledger, nursery: Nursery) -> None:
    pid = nursery.start(SLEEP)
    ledger.record(pid, "sleeper", "other")
    assert [(r.pid, r.name) for r in ledger.alive()] == [(pid, "sleeper")]
    assert [(e.pid, e.killed) for e in ledger.end_all(grace_s=5)] == [(pid, False)]
    assert nursery.returncode(pid) == -signal.SIGTERM
    assert ledger.alive() == []


def test_a_process_deaf_to_sigterm_is_killed_after_the_grace(ledger: Ledger, nursery: Nursery) -> None:
    pid = nursery.start(DEAF)
    ledger.record(pid, "deaf", "other")
    assert [(e.pid, e.killed) for e in ledger.end_all(grace_s=0.2)] == [(pid, True)]
    assert nursery.returncode(pid) == -signal.SIGKILL


def test_another_process_that_got_a_recorded_pid_is_left_alone(ledger: Ledger, nursery: Nursery) -> None:
    pid = nursery.start(SLEEP)
    ledger.record(pid, "sleeper", "other")
    file = ledger.state / "processes.json"
    content = json.loads(file.read_text())
    content["processes"][0]["started"] -= 1
    file.write_text(json.dumps(content))
    assert ledger.alive() == []
    assert ledger.end_all() == []
    assert processes.look(pid) is not None


def test_records_of_an_earlier_boot_mean_nothing(ledger: Ledger, nursery: Nursery) -> None:
    pid = nursery.start(SLEEP)
    ledger.record(pid, "sleeper", "other")
    file = ledger.state / "processes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot": "an earlier one"}))
    assert ledger.end_all() == []
    assert processes.look(pid) is not None


def test_an_orphan_is_found_by_the_marker_in_its_environment(ledger: Ledger, nursery: Nursery) -> None:
    ours = nursery.start(SLEEP, **{MARKER: str(ledger.state)})
    another_folder = nursery.start(SLEEP, **{MARKER: f"{ledger.state}-2"})
    unmarked = nursery.start(SLEEP)
    assert [e.pid for e in ledger.end_all(grace_s=5)] == [ours]
    assert processes.look(another_folder) is not None
    assert processes.look(unmarked) is not None


def test_descendants_of_a_recorded_process_end_with_it(ledger: Ledger, nursery: Nursery, tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    parent = nursery.start(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time, pathlib;"
            "c = subprocess.Popen(['sleep', '60']);"
            f"pathlib.Path({str(child_file)!r}).write_text(str(c.pid)); print('up', flush=True); time.sleep(60)",
        ]
    )
    child = processes.look(int(child_file.read_text()))
    assert child is not None
    ledger.record(parent, "parent", "other")
    assert {e.pid for e in ledger.end_all(grace_s=5)} == {parent, child.id.pid}
    assert not processes.is_running(child.id)


def test_the_store_ends_last_and_ray_before_haproxy(ledger: Ledger, nursery: Nursery) -> None:
    pids = {kind: nursery.start(SLEEP) for kind in ("valkey", "haproxy", "ray", "driver")}
    for kind, pid in pids.items():
        ledger.record(pid, kind, kind)  # type: ignore[arg-type]
    assert [e.kind for e in ledger.end_all(grace_s=5)] == ["driver", "ray", "haproxy", "valkey"]


def test_only_the_kinds_asked_for_are_ended(ledger: Ledger, nursery: Nursery) -> None:
    store, ray = nursery.start(SLEEP), nursery.start(SLEEP)
    ledger.record(store, "store", "valkey")
    ledger.record(ray, "raylet", "ray")
    assert [e.pid for e in ledger.end_all(kinds=["ray"])] == [ray]
    assert [r.name for r in ledger.alive()] == ["store"]


def test_what_was_found_by_its_marker_is_recorded_and_keeps_its_name(ledger: Ledger, nursery: Nursery) -> None:
    named = nursery.start(SLEEP)
    ledger.record(named, "store", "valkey")
    marked = nursery.start(SLEEP, **{MARKER: str(ledger.state)})
    ledger.record_found()
    entries = json.loads((ledger.state / "processes.json").read_text())["processes"]
    assert {entry["pid"]: entry["name"] for entry in entries}.keys() == {named, marked}
    assert [entry["name"] for entry in entries if entry["pid"] == named] == ["store"]


def test_the_caller_survives_its_own_sweep_and_ends_its_children(ledger: Ledger) -> None:
    # A caller of its own: a test runner has children of earlier tests, and a sweep would rightly end those too.
    caller = f"""
import json, os, pathlib, subprocess
from cluster.ledger import Ledger
ledger = Ledger(pathlib.Path({str(ledger.state)!r}))
child = subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL)
ledger.record(os.getpid(), "driver", "driver")
ended = [e.pid for e in ledger.end_all(grace_s=5)]
print(json.dumps([ended, [child.pid], child.wait(timeout=5) is not None]))
"""
    done = subprocess.run([sys.executable, "-c", caller], capture_output=True, text=True, timeout=60, check=True)
    ended, started, gone = json.loads(done.stdout)
    assert ended == started and gone


def test_recording_a_process_that_has_ended_is_an_error(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError, match="has ended already"):
        ledger.record(child.pid, "gone", "other")


def test_a_zombie_counts_as_ended() -> None:
    child = subprocess.Popen(["true"])
    seen = processes.look(child.pid)
    deadline = time.monotonic() + 5
    while (now := processes.look(child.pid)) and not now.zombie and time.monotonic() < deadline:
        time.sleep(0.01)
    if seen is not None:
        assert not processes.is_running(seen.id)
    child.wait()
    assert processes.look(child.pid) is None


def test_a_process_name_with_spaces_and_parentheses_is_read_right(nursery: Nursery, tmp_path: Path) -> None:
    program = tmp_path / "a ) (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "60"])
    try:
        deadline = time.monotonic() + 5
        while (seen := processes.look(child.pid)) and seen.name != "a ) (b" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen is not None
        assert (seen.name, seen.parent) == ("a ) (b", os.getpid())
        assert seen.id == ProcessId(child.pid, seen.id.started)
    finally:
        child.kill()
        child.wait()


def test_two_starts_in_one_folder_exclude_each_other(ledger: Ledger) -> None:
    expected = pytest.raises(StateLocked, match=rf"process {os.getpid()} already runs in .*raycommend down")
    with ledger.lock(), expected, Ledger(ledger.state).lock():
        pass
    with ledger.lock():
        pass


def test_the_lock_goes_with_a_killed_holder_even_while_its_child_lives(
    ledger: Ledger, nursery: Nursery, tmp_path: Path
) -> None:
    child_file = tmp_path / "child"
    code = (
        "import subprocess, sys, time, pathlib\n"
        "from cluster.ledger import Ledger\n"
        f"with Ledger(pathlib.Path({str(ledger.state)!r})).lock():\n"
        "    c = subprocess.Popen(['sleep', '60'])\n"
        f"    pathlib.Path({str(child_file)!r}).write_text(str(c.pid))\n"
        "    print('up', flush=True)\n"
        "    time.sleep(60)\n"
    )
    root = str(Path(processes.__file__).parents[1])
    holder = nursery.start([sys.executable, "-c", code], PYTHONPATH=root)
    try:
        with pytest.raises(StateLocked, match=f"process {holder} "), ledger.lock():
            pass
        os.kill(holder, signal.SIGKILL)
        nursery.returncode(holder)
        with ledger.lock():
            pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child_file.read_text()), signal.SIGKILL)
