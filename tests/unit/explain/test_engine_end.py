"""What a killed engine leaves in shared memory is freed, and the process that had started it ends without a word."""

import os
import subprocess
import sys
from pathlib import Path

from models.explain.engine_end import free, shared_by

ROOT = Path(__file__).parents[3]
PROGRAM = """
import multiprocessing, os, signal, sys, time
from multiprocessing.shared_memory import SharedMemory

def child(say):
    segment, lock = SharedMemory(create=True, size=4096), multiprocessing.get_context("spawn").Lock()
    say.send(segment.name)
    time.sleep(60)

if __name__ == "__main__":
    from models.explain.engine_end import free, shared_by

    mine = SharedMemory(create=True, size=4096)
    hear, say = multiprocessing.Pipe(duplex=False)
    started = multiprocessing.get_context("spawn").Process(target=child, args=(say,))
    started.start()
    name = hear.recv()
    left = shared_by([started.pid])
    started.kill()
    started.join()
    if sys.argv[1] == "free":
        free(left)
    print(name in left, mine.name in left, len(left), *left)
    mine.close()
    mine.unlink()
"""


def ended(script: Path, how: str) -> tuple[list[str], str]:
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(script), how],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split(), done.stderr


def test_what_a_killed_child_shared_is_removed_and_nothing_is_said_at_exit(tmp_path: Path) -> None:
    (has_child_s, has_own, count, *names), said = ended(tmp_path / "freed.py", "free")
    assert (has_child_s, has_own, count) == ("True", "False", "2"), "a segment and a semaphore of the child's alone"
    assert said == "" and not set(names) & set(os.listdir("/dev/shm"))


def test_without_it_python_complains_at_exit(tmp_path: Path) -> None:
    _, said = ended(tmp_path / "left.py", "leave")
    assert "leaked" in said


def test_a_process_that_is_gone_shares_nothing_and_what_is_gone_is_free_already() -> None:
    assert shared_by([2**22 + 1]) == set()
    free({"psm_nobody-has-this"})
