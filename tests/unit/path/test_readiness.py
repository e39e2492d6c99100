"""`/readyz`: every dependency is told, and only the store and the releases decide."""

from __future__ import annotations

import time
from typing import Any

import pytest

from models.store.memory_streams import MemoryEventStreams
from models.store.port import StoreTimeout, StoreUnavailable
from serve.errors import DependencyError, ReleaseMissing
from serve.live import LiveFollower
from serve.readiness import Readiness


async def state(edge: Any) -> tuple[int, dict[str, Any]]:
    response = await edge.http.get("/readyz")
    return response.status_code, response.json()


async def test_a_replica_that_has_everything_says_so(edge) -> None:
    status, said = await state(edge)
    assert status == 200
    assert said == {
        "ready": True,
        "store": "ok",
        "releases": {"main": edge.tiny.release.release_id},
        "statistics": None,
        "explainer": {"state": "ok", "age_s": 0.0},
    }


@pytest.mark.parametrize("error", [StoreUnavailable("away at 10.0.0.7"), StoreTimeout("late")])
async def test_without_the_store_it_is_not_ready_and_the_rest_is_told_all_the_same(edge, error) -> None:
    edge.store_error = error
    status, said = await state(edge)
    assert (status, said["ready"], said["store"]) == (503, False, "unavailable")
    assert said["releases"]["main"] and said["explainer"]["state"] == "ok" and "10.0.0.7" not in str(said)


async def test_without_a_release_of_every_tenant_it_is_not_ready(edge) -> None:
    class Missing:
        def current(self, tenant: str) -> str:
            if tenant == "shop":
                raise ReleaseMissing("none yet")
            return "r-1"

    ready = Readiness(edge, Missing(), edge.explainer, tenants=("main", "shop"))  # type: ignore[arg-type]
    said = await ready.state()
    assert (said["ready"], said["releases"]) == (False, {"main": "r-1", "shop": None})


async def test_an_explainer_that_hangs_or_is_gone_costs_a_moment_and_never_readiness(edge) -> None:
    edge.explainer.trouble.hangs = True
    started = time.monotonic()
    status, said = await state(edge)
    assert status == 200 and said["explainer"] == {"state": "unknown", "age_s": None}
    assert time.monotonic() - started < 1.0
    edge.explainer.trouble.hangs = False
    assert (await state(edge))[1]["explainer"]["state"] == "ok"
    edge.explainer.trouble.hangs = True
    status, said = await state(edge)
    assert said["explainer"]["state"] == "ok" and said["explainer"]["age_s"] >= 0.2, "what it said last, and when"
    edge.explainer.trouble.hangs = False
    edge.explainer.trouble.error = DependencyError("gone")
    assert (await state(edge))[1]["explainer"]["state"] == "unavailable"
    edge.explainer.trouble.error, edge.explainer.lives = None, False
    status, said = await state(edge)
    assert status == 200 and said["explainer"]["state"] == "unavailable"


async def test_where_events_are_counted_live_the_age_of_the_statistics_is_told(make_edge) -> None:
    streams = MemoryEventStreams()
    edge = await make_edge()
    follower = LiveFollower(streams, edge.releases, tenants=("main",))
    ready = Readiness(edge, edge.releases, edge.explainer, tenants=("main",), live=follower)
    nothing = {"asked_age_s": None, "snapshot_age_s": None, "unknown_items": 0}
    assert (await ready.state())["statistics"] == {"main": nothing}
    await follower.refresh()
    said = (await ready.state())["statistics"]["main"]
    assert 0 <= said["asked_age_s"] < 30 and said["snapshot_age_s"] is None
