"""What a retrieval is asked: one user's state plus the wishes of one request.

Built by the serving pipeline from the request, and by training and evaluation from the event log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.declared import Labels
from models.features import ANONYMOUS, UserFeatures


@dataclass(frozen=True, slots=True)
class AttributeFilter:
    """One attribute condition; all given parts must hold. Labels compare without case.

    An item without the attribute fails `any_of`, `all_of`, `gte` and `lte` and passes `none_of`.
    """

    any_of: tuple[str, ...] | None = None
    all_of: tuple[str, ...] | None = None
    none_of: tuple[str, ...] | None = None
    gte: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class RetrievalQuery:
    """One question to a retriever.

    `n` is how many candidates are wanted. `now_ms` is the time of the request (events after it do not exist).
    `exclude_items` are ids that must not return; seen items are excluded too when `exclude_seen`.
    `seed_items` stand in for (or add to) history. `intent` is a unit vector of the query text, a
    shorter one of what was searched a while ago (`models.intent.faded`), or None.
    `only_items` restricts the answer to a given list (rank my candidates). `personal` False means the user's
    history must not be used (context, seed items and popularity only). `context` are labels that the request
    itself names; like what the user declared, they count while there is next to no history. `about_seeds` asks what
    resembles or follows the seed items: the weights for items apply, and usually `personal` is False.
    """

    n: int
    now_ms: int
    user: UserFeatures = ANONYMOUS
    exclude_seen: bool = True
    exclude_items: tuple[str, ...] = ()
    seed_items: tuple[str, ...] = ()
    only_items: tuple[str, ...] | None = None
    filters: Mapping[str, AttributeFilter] = field(default_factory=dict)
    intent: npt.NDArray[np.float32] | None = None
    personal: bool = True
    context: Labels = ()
    about_seeds: bool = False
