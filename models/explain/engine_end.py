"""Ends a vLLM engine at once and quietly: its processes are killed, then what this process holds of it is closed.

vLLM's own way is to ask and to wait. Its processes then take seconds to take an interpreter with torch apart, print
errors of their own while they do, and are killed for being late. Nothing in them is worth that: they keep no file, and
memory is freed with the process. Called by the generator; imports vLLM only where an engine exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from multiprocessing import resource_tracker
from typing import Any

from models.explain.reaper import Reaper

_GONE_S = 5.0
"""Patience for a killed process to be gone: its threads may outlive its first one by moments."""
_FOLDER = "/dev/shm/"
_KINDS = {"psm_": "shared_memory", "sem.": "semaphore"}
"""How files begin that Python's resource tracker watches, and what it calls them: `psm_x` is "/psm_x", `sem.x` "/x"."""


async def end_engine(engine: Any, reaper: Reaper) -> None:
    """End the engine and every process that the reaper watches; also when the engine is dead or hangs.

    Whoever still waits for it gets an EngineDeadError. Takes a fraction of a second; the reaper is closed afterwards.
    """
    if engine.output_handler is not None:
        engine.output_handler.cancel()  # else it logs the end of the engine as an error
    with contextlib.suppress(Exception):
        from vllm.v1.engine.exceptions import EngineDeadError

        engine.output_processor.propagate_error(EngineDeadError())  # else whoever asked a hung engine waits for ever
    with contextlib.suppress(Exception):
        engine.engine_core.resources.engine_dead = True  # else vLLM's monitor calls what follows unexpected
    shared = shared_by(await asyncio.to_thread(reaper.children))
    await asyncio.to_thread(reaper.close)
    free(shared)
    with contextlib.suppress(Exception):
        await asyncio.to_thread(engine.shutdown, _GONE_S)  # sockets and threads; its processes are dead or dying
    await asyncio.sleep(0)  # the sockets are closed by a callback of this loop
    with contextlib.suppress(Exception):
        engine.engine_core.resources.ctx.destroy(linger=0)


def shared_by(pids: Iterable[int]) -> set[str]:
    """Return the names of Python's shared memory and semaphores that these processes have mapped and this one has not.

    Names are those of files in `/dev/shm`. Found by inode: who makes a semaphore has it mapped under a passing name.
    """
    inodes: set[int] = set().union(*(_mapped(str(pid)) for pid in pids)) - _mapped("self")
    found = set()
    for name in os.listdir(_FOLDER):
        with contextlib.suppress(OSError):
            if name.startswith(tuple(_KINDS)) and os.stat(_FOLDER + name).st_ino in inodes:
                found.add(name)
    return found


def free(names: Iterable[str]) -> None:
    """Remove what a killed owner left, so that Python's resource tracker finds nothing to complain about at exit."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_FOLDER + name)
        kind = next(kind for prefix, kind in _KINDS.items() if name.startswith(prefix))
        known = "/" + name.removeprefix("sem.")
        # Known to the tracker that the children share with this process, or made known: it must not be surprised.
        resource_tracker.register(known, kind)
        resource_tracker.unregister(known, kind)


def _mapped(process: str) -> set[int]:
    """Return the inodes of what a process has mapped from `/dev/shm`; none for a process that is gone."""
    try:
        with open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
            return {int(line.split(maxsplit=5)[4]) for line in file if _FOLDER in line}
    except OSError:
        return set()
