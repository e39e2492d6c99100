"""Interleaved comparison: A B, B A, A B … so that drift of the machine falls on all arms alike.

Knows nothing of what the arms do. Called by benchmarks through their context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Arm = Callable[[], float | Sequence[float] | npt.NDArray[np.float64]]
"""Runs once and returns one figure or the raw samples of the round, in the unit the benchmark states."""
MIN_ROUNDS = 3
MAX_ROUNDS = 1000


def orders(arms: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """Yield the order of each round: forwards and backwards in turn, and for three and more arms also rotated."""
    for number in range(rounds):
        turn = (number // 2) % len(arms) if len(arms) > 2 else 0
        order = [*arms[turn:], *arms[:turn]]
        yield order if number % 2 == 0 else order[::-1]


def interleave(
    arms: Mapping[str, Arm], *, rounds: int, warmup: int = 1, max_s: float = 600.0, tell: Callable[[str], None] = print
) -> pa.Table:
    """Run every arm once per round and return all raw samples: columns round, position, arm, value.

    Args:
        arms: Name → arm, at least one.
        rounds: Measured rounds, 3 to 1,000.
        warmup: Rounds run before and thrown away.
        max_s: No new measured round starts after this long; the table then holds fewer whole rounds.
        tell: Told about every round.

    Raises:
        ValueError: The bounds are not met, an arm gave no sample, or fewer than 3 rounds fitted into `max_s`.
    """
    import pyarrow as pa

    if not arms or not MIN_ROUNDS <= rounds <= MAX_ROUNDS or warmup < 0:
        raise ValueError(f"an interleaved run needs an arm and {MIN_ROUNDS} to {MAX_ROUNDS} rounds, not {rounds}")
    names = list(arms)
    for order in orders(names, warmup):
        for name in order:
            arms[name]()
    columns: dict[str, list[npt.NDArray[np.generic]]] = {"round": [], "position": [], "arm": [], "value": []}
    began, done = time.monotonic(), 0
    for number, order in enumerate(orders(names, rounds)):
        if time.monotonic() - began > max_s:
            break
        for position, name in enumerate(order):
            values = np.atleast_1d(np.asarray(arms[name](), dtype=np.float64))
            if not len(values):
                raise ValueError(f"arm {name} gave no sample in round {number}")
            for column, constant in (("round", number), ("position", position), ("arm", names.index(name))):
                columns[column].append(np.full(len(values), constant, dtype=np.int32))
            columns["value"].append(values)
        done = number + 1
        tell(f"round {done} of {rounds}: {' '.join(order)}")
    if done < MIN_ROUNDS:
        raise ValueError(f"only {done} of {rounds} rounds fitted into {max_s:g} s; at least {MIN_ROUNDS} are needed")
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    arm = pa.DictionaryArray.from_arrays(whole["arm"], names)
    return pa.table(whole | {"arm": arm})


def timed_ms(call: Callable[[], object], repeat: int) -> list[float]:
    """Call `repeat` times and return the ms of each."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / 1e6)
    return times
