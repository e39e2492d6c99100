"""What evidence needs is computed beside the event loop, tables of features included."""

import threading
from functools import cached_property
from typing import Any

import numpy as np

from models.items.change import ItemChange
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.weighing import FeatureWeights

BUILT_IN: list[int] = []


class Watched(FeatureWeights):
    """Feature weights that remember which thread built their tables."""

    @cached_property
    def features(self) -> FusionFeatures:
        BUILT_IN.append(threading.get_ident())
        return FeatureWeights.features.func(self)


def head() -> dict[str, Any]:
    n = len(FEATURE_NAMES)
    shapes = {"mean": n, "scale": n, "linear": n, "in": (4, n), "in_bias": 4, "out": 4}
    return {f"head.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()}


async def test_a_coroutine_never_builds_the_tables_behind_what_weighed_most(edge) -> None:
    await edge.item_log.append_item("main", ItemChange("put", "new-1", 1_700_000_000_000, "new", ""))
    await edge.releases.catch_up()
    bundle = edge.releases.bundle("main", edge.tiny.release.release_id)
    # As after a change of an item: nothing of it was warmed.
    assert bundle.alone is not None
    vars(bundle)["feature_weights"] = Watched(head(), bundle.catalog, bundle.embeddings, bundle.statistics)
    BUILT_IN.clear()
    for stream in (False, True):
        wish = {"user_id": "u1", "k": 3, "explain": True}
        answer = await edge.stream(wish) if stream else (await edge.recommend(wish)).json()
        assert answer
    assert len(BUILT_IN) == 1 and BUILT_IN[0] != threading.get_ident()
