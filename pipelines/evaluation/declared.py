"""Users nobody knows who say what they like: does a declaration help them?

Data sets hold no declarations, so one is made of the genres (or whatever labels the catalog has) of the first items
that a user liked; those are not recommended again, and what the user likes next is to be found. No user of a case is
in the training log. Asked on the events before the test events. Called by `cluster.evaluate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.behaviour.replay import UserHistory, histories
from models.catalog import Item, ItemCatalog, document_of
from models.declared import Declaration
from models.encoder import Encoder
from models.events import EventLog, EventType
from models.features import UserFeatures
from models.ids import hash64_array
from models.retrieval.query import RetrievalQuery
from pipelines.evaluation.baselines import Build, Recommend
from pipelines.evaluation.protocol import Case, Split

FOLDS = (0, 1, 2, 3)
"""Each quarter of the users is unknown once."""
LIKED_FROM = 4.0
"""A rating that says the user liked the item."""
_FIRST, _NEXT, _LABELS = 5, 20, 3
"""Liked items that a declaration is made of, liked items after them to be found, labels declared of an attribute."""


def strangers(log: EventLog, catalog: ItemCatalog, encoder: Encoder, *, events: bool = False) -> Callable[[int], Split]:
    """Return the split of each fold: the other users' events, and one case per user with enough liked items.

    With `events`, one to four of the items that the declaration is made of are known events too.
    """
    users = np.unique(log.user_ids.astype(str))
    fold_of = dict(zip(np.random.default_rng(0).permutation(users), np.arange(len(users)) % len(FOLDS), strict=True))
    fold = np.array([fold_of[str(user)] for user in log.user_ids])

    def split(seed: int) -> Split:
        asked = (_case(history, catalog, encoder, events) for history in histories(log.take(fold == seed)))
        return Split(log.take(fold != seed), [case for case in asked if case is not None])

    return split


def undeclared(build: Build) -> Build:
    """Return the method asked as if nobody had declared anything."""

    def without(train: EventLog) -> Recommend:
        recommend = build(train)

        def asked(query: RetrievalQuery, k: int) -> list[str]:
            return list(recommend(replace(query, user=replace(query.user, declared=None)), k))

        return asked

    return without


def declaration_of(item_ids: list[str], catalog: ItemCatalog, encoder: Encoder, *, now_ms: int) -> Declaration:
    """Return what somebody who likes these items would declare: the labels most of them carry, as a user would."""
    counts: dict[str, Counter[str]] = {}
    for row in catalog.rows(item_ids):
        for name, values in catalog.labels(int(row)).items() if row >= 0 else ():
            counts.setdefault(name, Counter()).update(values)
    chosen = {name: tuple(value for value, _ in found.most_common(_LABELS)) for name, found in counts.items()}
    text = document_of(Item("", "", "", chosen))
    vector = encoder.encode([text])[0] if text else None
    return Declaration(tuple((name, value) for name, values in chosen.items() for value in values), vector, now_ms)


def _case(history: UserHistory, catalog: ItemCatalog, encoder: Encoder, events: bool) -> Case | None:
    taken = history.positive_positions()
    rated = history.types[taken] == EventType.rating
    liked = taken[~rated | (history.values[taken] >= LIKED_FROM)]
    if len(liked) < 2 * _FIRST:
        return None
    first, later = liked[:_FIRST], liked[_FIRST : _FIRST + _NEXT]
    items = [str(history.item_ids[at]) for at in first]
    now_ms = int(history.timestamps_ms[later[0]])
    said = declaration_of(items, catalog, encoder, now_ms=now_ms)
    known = first[-1 - len(history) % (_FIRST - 1) :] if events else first[:0]
    user = UserFeatures(
        tuple(str(history.item_ids[at]) for at in known),
        history.types[known],
        history.values[known],
        history.timestamps_ms[known],
        np.unique(hash64_array(items)),
        known=events,
        declared=said,
    )
    return Case(history.user_id, user, now_ms, frozenset(str(history.item_ids[at]) for at in later))
