"""Benchmark `freshness`: how soon an acknowledged event and a new item show in what a running cluster answers.

Events: a user's own list is asked for, its first item is clicked, and once the click is acknowledged the very next
answer must have dropped that item (touched items are left out) and name the click as the newest event. Items: a new
one is put, and a query for its title is asked again and again until the list holds it. Black box over HTTP against
the cluster of the state folder, which is started when it does not run. Loopback only. Called by the harness.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from cluster.config import Settings
from cluster.stack import Stack, api_url, running
from loadtests import workload
from loadtests.bench.harness import BenchContext
from loadtests.bench.targets import Aim
from loadtests.schedule import LoadError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_COLOURS = ("Amber", "Cobalt", "Crimson", "Emerald", "Indigo", "Ivory", "Ochre", "Scarlet", "Teal", "Umber")
_THINGS = (
    "Accordion",
    "Beehive",
    "Glacier",
    "Lantern",
    "Lighthouse",
    "Orchard",
    "Piano",
    "Submarine",
    "Volcano",
    "Windmill",
)
_PLACES = ("Bergen", "Cusco", "Dakar", "Hanoi", "Kyoto", "Lima", "Malta", "Nairobi", "Oslo", "Quito")
_NO_ROUTE = (404, 405, 501)


class FreshnessOptions(BaseModel):
    """Options of the `freshness` benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str | None = None
    """A cluster on this machine; none means that of the settings, started where it does not run."""
    events: int = Field(1000, ge=0, le=100_000)
    """Acknowledged clicks to check."""
    users: str = "943"
    """A number of ids ("1" … "943", as in MovieLens-100K) or a file with one id a line."""
    items: int = Field(100, ge=0, le=10_000)
    """New items to put; each is deleted again."""
    callers: int = Field(2, ge=1, le=64)
    """Users asked for side by side."""
    poll_s: float = Field(0.01, ge=0.001, le=1)
    """Pause between two looks for a new item."""
    give_up_s: float = Field(10.0, gt=0, le=60)
    """A new item that is not found by then counts as never found."""
    max_s: float = Field(900.0, gt=0, le=3600)
    """No new event or item is begun after this long; fewer than were asked for make the run invalid."""
    k: int = Field(50, ge=1, le=100)
    """Length of the list in which a new item has to appear."""


@dataclass(frozen=True, slots=True)
class _Click:
    reflected: bool
    after_ms: float
    """From posting the event to the answer that follows its acknowledgement."""


def bench(context: BenchContext) -> None:
    """Run the benchmark `freshness`."""
    options = context.options(FreshnessOptions)
    with cluster_of(context, options.url) as url:
        began = time.monotonic()
        clicks = asyncio.run(_clicks(context, options, url, began + options.max_s)) if options.events else []
        with api_client(url) as http:
            seconds = _items(context, options, http, began + options.max_s) if options.items else []
    reflected = context.save_array("reflected", [float(click.reflected) for click in clicks])
    after = context.save_array("event-ms", [click.after_ms for click in clicks])
    items = context.save_array("item-s", seconds)
    for what, made, asked in (("events", len(clicks), options.events), ("items", len(seconds), options.items)):
        if made < asked:
            context.invalid.append(f"only {made} of {asked} {what} could be tried")
    context.target("reflected_share", "array_mean", reflected, aim=Aim(at_least=1.0))
    context.target("event_to_answer_p99_ms", "array_quantile", after, q=0.99)
    context.target("item_p99_s", "array_quantile", items, q=0.99, aim=Aim(at_most=1.0))
    context.target("item_p50_s", "array_quantile", items, q=0.5)


@contextlib.contextmanager
def cluster_of(context: BenchContext, url: str | None = None) -> Iterator[str]:
    """Yield the URL of a running cluster: `url`, or that of the settings, started where it does not run."""
    if url is not None:
        yield url
        return
    settings = Settings.model_validate(dict(context.settings))
    if running(settings):
        yield api_url(settings)
        return
    context.tell("no cluster runs in this state folder: starting one")
    with Stack(settings, say=context.tell) as stack:
        yield stack.url


def api_client(url: str) -> httpx.Client:
    """Return a client of a cluster on this machine. Raises LoadError for any other."""
    return httpx.Client(**_to(url))


def _to(url: str) -> dict[str, Any]:
    if urlsplit(url).hostname not in _LOOPBACK:
        raise LoadError(f"{url} is not this machine: this benchmark writes, so it runs on the loopback only")
    key = os.environ.get("RAYCOMMEND_API_KEY")
    return {"base_url": url, "timeout": 30.0, "headers": {"X-Api-Key": key} if key else {}}


async def _clicks(context: BenchContext, options: FreshnessOptions, url: str, until: float) -> list[_Click]:
    """Click `events` times, no user in two callers' hands at a time."""
    users = workload.ids_from(options.users)
    shares = [users[i :: options.callers] for i in range(min(options.callers, len(users)))]
    refused: dict[str, int] = {}
    async with httpx.AsyncClient(**_to(url)) as http:

        async def caller(mine: Sequence[str], count: int) -> list[_Click]:
            found: list[_Click] = []
            tries = 0
            while len(found) < count and tries < 2 * count + 10 and time.monotonic() < until:
                click = await _click(http, mine[tries % len(mine)], refused)
                found += [] if click is None else [click]
                tries += 1
            return found

        counts = [len(range(i, options.events, len(shares))) for i in range(len(shares))]
        parts = await asyncio.gather(*(caller(mine, n) for mine, n in zip(shares, counts, strict=True)))
    clicks = [click for part in parts for click in part]
    context.facts["events"] = {"acknowledged": len(clicks), "users": len(users), "not_tried_because": refused}
    context.tell(f"{sum(c.reflected for c in clicks)} of {len(clicks)} acknowledged events were reflected")
    return clicks


async def _click(http: httpx.AsyncClient, user: str, refused: dict[str, int]) -> _Click | None:
    """Ask, click on the first item, ask again; None where there was no list or no acknowledgement, which is counted."""

    def no(why: str) -> None:
        refused[why] = refused.get(why, 0) + 1

    # The deadline leaves a busy machine time: a list that had to do without the profile shows nothing either way.
    wish = {"user_id": user, "k": 10, "deadline_ms": 5000, "exclude_seen": True}
    before = await http.post("/v1/recommend", json=wish)
    items = before.json()["items"] if before.status_code == 200 else []
    if not items:
        return no(f"list: {before.status_code}")
    posted, posted_ms = time.perf_counter(), int(time.time() * 1000)
    event = {"event_id": uuid.uuid4().hex, "user_id": user, "item_id": items[0]["item_id"], "type": "click"}
    accepted = await http.post("/v1/events", json={**event, "timestamp_ms": posted_ms})
    if accepted.status_code != 202 or accepted.json()["results"][0]["status"] != "accepted":
        return no(f"event: {accepted.status_code}")
    after = await http.post("/v1/recommend", json=wish)
    elapsed_ms = (time.perf_counter() - posted) * 1000
    return _Click(after.status_code == 200 and _reflects(after.json(), event["item_id"], elapsed_ms), elapsed_ms)


def _reflects(answer: Mapping[str, Any], item_id: str, elapsed_ms: float) -> bool:
    """Whether the clicked item, first a moment ago, is gone and the newest known event is not older than the click."""
    age = answer["profile_age_ms"]
    return (
        bool(answer["items"])
        and all(item["item_id"] != item_id for item in answer["items"])
        and (
            age is not None and age <= elapsed_ms + 2  # the clock of the event counts whole milliseconds
        )
    )


def _items(context: BenchContext, options: FreshnessOptions, http: httpx.Client, until: float) -> list[float]:
    """Put new items one after the other; returns seconds from sending each to the list that holds it, inf for never."""
    run = uuid.uuid4().hex[:8]
    found: list[float] = []
    put: list[str] = []
    try:
        for number in range(options.items):
            if time.monotonic() > until:
                break
            item_id, body = f"bench-{run}-{number}", _new_item(number, run)
            began = time.perf_counter()
            answer = http.put(f"/v1/items/{item_id}", json=body)
            if answer.status_code in _NO_ROUTE:
                context.invalid.append(f"PUT /v1/items/{{id}} answers {answer.status_code}: no live items here")
                break
            if not answer.is_success:
                raise LoadError(f"PUT /v1/items/{{id}} answered {answer.status_code}: {answer.text[:200]}")
            put.append(item_id)
            found.append(_until_listed(options, http, item_id, str(body["title"]), began))
    finally:
        statuses = [http.delete(f"/v1/items/{item_id}").status_code for item_id in put]
    deleted = sum(200 <= status < 300 for status in statuses)
    context.facts["items"] = {"put": len(put), "never_found": int(np.isinf(found).sum()), "deleted": deleted}
    context.tell(f"{len(put)} items put, median {np.median(found) if found else float('nan'):.3f} s until retrievable")
    return found


def _new_item(number: int, run: str) -> dict[str, Any]:
    """Return an item of a title that no other has."""
    colour, thing, place = _COLOURS[number % 10], _THINGS[number // 10 % 10], _PLACES[(number // 100 + number) % 10]
    return {
        "title": f"The {colour} {thing} of {place} {number}",
        "text": f"A {colour.lower()} {thing.lower()} near {place} changes a family for good.",
        "attributes": {"genres": ["Drama"], "bench": [run]},
    }


def _until_listed(options: FreshnessOptions, http: httpx.Client, item_id: str, title: str, began: float) -> float:
    while time.perf_counter() - began < options.give_up_s:
        answer = http.post("/v1/recommend", json={"query": title, "k": options.k, "deadline_ms": 5000})
        if answer.status_code == 200 and any(item["item_id"] == item_id for item in answer.json()["items"]):
            return time.perf_counter() - began
        time.sleep(options.poll_s)
    return float("inf")
