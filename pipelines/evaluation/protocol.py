"""The protocol: which events are known, which are to be predicted, and from what.

Knows nothing of the method under test. Called by `evaluate` and `tune`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.behaviour.replay import histories, order_of, ring_events
from models.events import EventLog
from models.features import RECENT_EVENTS, UserFeatures


@dataclass(frozen=True, slots=True)
class Case:
    """One question: what does this user take at `now_ms`?

    `targets` are the item ids that count as right; with `repeats` items the user has taken may be returned.
    """

    user_id: str
    user: UserFeatures
    now_ms: int
    targets: frozenset[str]
    repeats: bool = False


@dataclass(frozen=True, slots=True)
class Split:
    """Events a method may learn from, and the cases it is asked."""

    train: EventLog
    cases: list[Case]


def drop_last(log: EventLog, events: int, *, tie_seed: int) -> EventLog:
    """Return the log without each user's last `events`, ties in time broken by the seeded shuffle."""
    log = ring_events(log)  # as `histories` sees it, or the two would break ties differently
    order = order_of(log, tie_seed=tie_seed)
    users = log.user_ids[order]
    ends = np.flatnonzero(np.r_[users[1:] != users[:-1], True]) if len(log) else np.empty(0, int)
    from_end = np.repeat(ends, np.diff(np.r_[-1, ends])) - np.arange(len(log))
    return log.take(order[from_end >= events]).sorted_by_time()


def leave_last(log: EventLog, *, held_out: int = 3, tie_seed: int = 0) -> Split:
    """Hold out each user's last events; each is predicted from what that user did before it.

    Users with `held_out` events or fewer are not asked. Ties in time are broken by a seeded shuffle, which
    also orders the training log, so that no method profits from the order of a file.
    """
    cases = []
    for history in histories(log, tie_seed=tie_seed):
        if len(history) <= held_out:
            continue
        for position in range(len(history) - held_out, len(history)):
            cases.append(
                Case(
                    history.user_id,
                    history.before(position),
                    int(history.timestamps_ms[position]),
                    frozenset((str(history.item_ids[position]),)),
                )
            )
    return Split(drop_last(log, held_out, tie_seed=tie_seed), cases)


def moment_of(log: EventLog, share: float) -> int:
    """Return the time (ms) before which `share` of the events happened."""
    return int(np.quantile(log.timestamps_ms, share)) if len(log) else 0


def split_by_time(
    log: EventLog, *, share: float = 0.9, repeats: bool = False, cold: bool = False, limit: int = RECENT_EVENTS
) -> Split:
    """Train before the moment by which `share` of the events happened; predict each user's next basket after it.

    A basket is what a user took at one time stamp. `cold` asks the users without any event before that moment
    instead of those with some. Without `repeats`, items taken before are no targets, and users left without a
    target are not asked. Cases know a user's last `limit` events, by default those that the online store keeps.
    """
    log = ring_events(log)
    if not len(log):
        return Split(log, [])
    moment = moment_of(log, share)
    cases = []
    for history in histories(log):
        position = int(np.searchsorted(history.timestamps_ms, moment))
        if position == len(history) or (position == 0) != cold:
            continue
        now = int(history.timestamps_ms[position])
        basket = history.item_ids[position : int(np.searchsorted(history.timestamps_ms, now, side="right"))]
        before = set() if repeats else set(history.item_ids[:position])
        targets = frozenset(str(i) for i in basket if i not in before)
        if targets:
            cases.append(Case(history.user_id, history.before(position, limit=limit), now, targets, repeats))
    return Split(log.take(log.timestamps_ms < moment), cases)


def validation_log(log: EventLog, *, held_out: int = 3, tie_seed: int = 0) -> EventLog:
    """Return the log as it was before the test events: all that tuning may read."""
    return drop_last(log, held_out, tie_seed=tie_seed)
