"""The reaper ends exactly the marked processes, and only when their owner is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from models.explain.reaper import MARK, Reaper, descendants, processes

OWNER = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from models.explain.reaper import MARK, Reaper
reaper = Reaper()
nap = "import time, subprocess as s; p = s.Popen(['sleep', '60'], env={}); print(p.pid, flush=True); time.sleep(60)"
environment = dict(os.environ) | {MARK: reaper.mark}
child = subprocess.Popen([sys.executable, "-S", "-c", nap], env=environment, stdout=subprocess.PIPE)
grandchild = int(child.stdout.readline())
other = subprocess.Popen(["sleep", "60"])
while grandchild not in reaper.children():
    time.sleep(0.05)
print(child.pid, grandchild, other.pid, reaper.pid, flush=True)
time.sleep(60)
"""
ROOT = str(Path(__file__).parents[3])


def wait_gone(pids: set[int], seconds: float = 5.0) -> set[int]:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and pids & processes().keys():
        time.sleep(0.05)
    return pids & processes().keys()


def test_kill_minus_9_of_the_owner_ends_its_marked_children_and_nothing_else() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, ROOT], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    try:
        child, grandchild, other, reaper = map(int, owner.stdout.readline().split())
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        assert wait_gone({child, grandchild, reaper}) == set()
        assert other in processes()
        os.kill(other, signal.SIGKILL)
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()


def test_closing_ends_what_is_left() -> None:
    reaper = Reaper()
    child = subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: reaper.mark})
    unmarked = subprocess.Popen(["sleep", "60"])
    assert reaper.children() == {child.pid}
    reaper.settle()
    reaper.close()
    assert child.wait(5) == -signal.SIGKILL
    assert unmarked.poll() is None
    unmarked.kill()
    unmarked.wait()
    reaper.close()


def test_descendants_follow_the_tree() -> None:
    table = {2: (1, "0"), 3: (2, "0"), 4: (3, "0"), 5: (1, "0")}
    assert descendants([2], table) == {3, 4}
