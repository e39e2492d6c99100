"""Which events fit the sources, which train the ranker and which judge it. By time, never at random.

Called by `train_ranker`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from zlib import crc32

import numpy as np
import numpy.typing as npt

from models.behaviour.replay import UserHistory, histories, order_of, ring_events
from models.events import EventLog
from pipelines.training.settings import TrainingSettings
from pipelines.training.shown import Shown


class Part(IntEnum):
    """What an event of the log is used for."""

    fit = 0
    train = 1
    validate = 2


@dataclass(frozen=True, slots=True)
class Example:
    """One event to learn from or to be judged by: event `position` of `history`.

    `user` is a number drawn from the user's id, so that others who come or go do not move anybody from one half of the
    users to the other: what stopped a training must not decide about the next one.

    `last` is the position of the user's last event of the same part: nothing after it may be looked at. `basket` is
    how many events from `position` on were taken together.
    """

    user: int
    history: UserHistory
    position: int
    part: Part
    last: int
    basket: int = 1

    def finds_new(self) -> bool:
        """Return whether the user, who has a past, takes something that it does not hold."""
        ids, end = self.history.item_ids, self.position + self.basket
        return self.position > 0 and not np.isin(ids[self.position : end], ids[: self.position]).all()


@dataclass(frozen=True, slots=True)
class TrainingSplit:
    """`fit` is what sources and statistics may see of `log`; `examples` are the events held out of it.

    `shown` is what users saw, which `log` has not.
    """

    log: EventLog
    fit: EventLog
    examples: list[Example]
    shown: Shown

    def of(self, part: Part) -> list[Example]:
        """Return the examples of one part, user by user, oldest first."""
        return [e for e in self.examples if e.part == part]


def split_events(log: EventLog, settings: TrainingSettings, *, seed: int, fitted: bool = False) -> TrainingSplit:
    """Split `log`; equal times of a user keep its order.

    Held-out events reach an example only as that user's own earlier history, as they would online. Above
    `max_lists` whole users are left out, drawn with `seed`; their held-out events still do not fit the sources.
    With `fitted`, what fits the sources is an example too: only for what reads no source.
    """
    kept = ring_events(log)
    order = order_of(kept)
    grouped = kept.take(order)
    parts = _by_time(grouped, settings) if settings.split == "time" else _by_user(grouped, settings)
    fit = kept.take(np.sort(order[parts == Part.fit]))
    return TrainingSplit(kept, fit, _examples(kept, parts, settings, seed, fitted), Shown(log))


def split_after(
    log: EventLog, moment_ms: int, settings: TrainingSettings, *, seed: int, fitted: bool = False
) -> TrainingSplit:
    """Split `log` at a moment: earlier events fit the sources, later ones are examples; `fitted` as in `split_events`.

    The newest `incremental_validation_share` of the later events validates. Events that arrived late, with a time
    before `moment_ms`, feed the sources only.
    """
    kept = ring_events(log)
    order = order_of(kept)
    grouped = kept.take(order)
    times = grouped.timestamps_ms
    parts = np.full(len(grouped), Part.fit, np.uint8)
    new = times > moment_ms
    if new.any():
        parts[new] = Part.train
        second = np.quantile(times[new], 1 - settings.incremental_validation_share)
        parts[new & (times > second)] = Part.validate
    fit = kept.take(np.sort(order[parts == Part.fit]))
    return TrainingSplit(kept, fit, _examples(kept, parts, settings, seed, fitted), Shown(log))


def stretches(split: TrainingSplit, part: Part, count: int) -> Iterator[tuple[EventLog, list[Example]]]:
    """Yield the examples of a part in `count` stretches of time, each with the events that sources may see.

    With one stretch that is `split.fit` for all, in their order; else all events before the stretch, as a release that
    is built every so often knows them. That needs a split by time: by user, others' later events are in `fit`.
    """
    examples = split.of(part)
    if count == 1 or len(examples) < count:
        yield split.fit, examples
        return
    times = np.array([int(e.history.timestamps_ms[e.position]) for e in examples])
    begins = np.unique(np.quantile(times, np.arange(count) / count, method="lower"))
    of = np.searchsorted(begins, times, side="right") - 1
    for at, moment in enumerate(begins.tolist()):
        yield split.log.take(split.log.timestamps_ms < moment), [examples[n] for n in np.flatnonzero(of == at)]


def _examples(
    log: EventLog, parts: npt.NDArray[np.uint8], settings: TrainingSettings, seed: int, fitted: bool
) -> list[Example]:
    if len(log) == 0:
        return []
    by_user: list[list[Example]] = []
    start = 0
    for history in histories(log):
        user = crc32(history.user_id.encode()) >> 1  # fits int32
        own = parts[start : start + len(history)]
        start += len(history)
        last = {part: int(np.flatnonzero(own == part)[-1]) for part in set(own.tolist())}
        found = _baskets(history, own) if settings.baskets else ((int(p), 1) for p in history.positive_positions())
        by_user.append(
            [
                Example(user, history, p, Part(own[p]), last[own[p]], basket)
                for p, basket in found
                # A shop's ranker is asked for the first basket too: most of its customers come once.
                if (p > 0 or settings.baskets) and (fitted or own[p] != Part.fit)
            ]
        )
    chosen: list[int] = []
    room = settings.max_lists
    for user in np.random.default_rng(seed).permutation(len(by_user)):
        held_out = sum(example.part != Part.fit for example in by_user[user])
        if held_out <= room:
            chosen.append(int(user))
            room -= held_out
    return [example for user in sorted(chosen) for example in by_user[user]]


def _baskets(history: UserHistory, parts: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield where each run of positive events of one time and part begins, and how many they are."""
    positive = np.zeros(len(history), bool)
    positive[history.positive_positions()] = True
    times = history.timestamps_ms
    goes_on = positive[1:] & positive[:-1] & (times[1:] == times[:-1]) & (parts[1:] == parts[:-1])
    starts = np.flatnonzero(np.r_[True, ~goes_on])
    for start, end in zip(starts.tolist(), np.r_[starts[1:], len(history)].tolist(), strict=True):
        if positive[start]:
            yield start, end - start


def _by_user(grouped: EventLog, settings: TrainingSettings) -> npt.NDArray[np.uint8]:
    """Each user's latest events, at most half of them, so that every user also feeds the sources."""
    parts = np.full(len(grouped), Part.fit, np.uint8)
    users = grouped.user_ids
    ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True]) + 1 if len(users) else np.empty(0, np.int64)
    for start, end in zip(np.r_[0, ends[:-1]].astype(int), ends.tolist(), strict=False):
        held = min(settings.train_positions + settings.validation_positions, (end - start) // 2)
        validation = min(settings.validation_positions, (held + 1) // 2)
        parts[end - held : end] = Part.train
        parts[end - validation : end] = Part.validate
    return parts


def _by_time(grouped: EventLog, settings: TrainingSettings) -> npt.NDArray[np.uint8]:
    """Two moments for everybody: sources before the first, validation after the second."""
    parts = np.full(len(grouped), Part.fit, np.uint8)
    if len(grouped):
        share = settings.time_share
        first, second = np.quantile(grouped.timestamps_ms, [1 - share, 1 - share / 5])
        parts[grouped.timestamps_ms > first] = Part.train
        parts[grouped.timestamps_ms > second] = Part.validate
    return parts
