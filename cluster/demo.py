"""The demo: what a newcomer sees. Prepares, starts, asks, clicks, asks again and shows both lists.

The click is on an item the first list does not show, so that what moves is the click's doing.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.panel import Panel

from cluster.client import ApiClient
from cluster.config import Settings
from cluster.console import answer_table, result, say, stdout, timings
from cluster.errors import OperatorError
from cluster.prepare import build, import_dataset
from cluster.stack import Stack
from cluster.workspace import Workspace
from pipelines.dataset import Dataset

USER = "196"
"""Asked for where the data set knows them: a user of MovieLens-100K with a mixed taste."""
REASONS_DEADLINE_MS = 60_000


def run_demo(settings: Settings, *, once: bool, as_json: bool) -> None:
    """Run the demo; returns after one round with `once`, else when interrupted. Raises OperatorError."""
    started = time.perf_counter()
    dataset = _prepare(settings)
    setup_s = time.perf_counter() - started
    say(f"prepared in {setup_s:.1f} s")
    started = time.perf_counter()
    with Stack(settings, say=say) as stack:
        start_s = time.perf_counter() - started
        say(f"started in {start_s:.1f} s: {stack.url}")
        first, second = _round(ApiClient(stack.url, api_key=os.environ.get("RAYCOMMEND_API_KEY")), dataset)
        if not as_json:
            _show(dataset, first, second)
        if not once:
            stdout.print(Panel(f"{stack.url}  ·  {stack.url}/docs  ·  Ctrl-C stops everything"))
            _wait_for_interrupt()
        say("stopping")
    if as_json:
        ok = shows_the_product(first, second)
        result({"ok": ok, "first": first, "second": second, "setup_s": round(setup_s, 1), "start_s": round(start_s, 1)})
        if not ok:
            raise OperatorError("the second list does not reflect the click, or no reason was written by the model")


def _prepare(settings: Settings) -> Dataset:
    workspace = Workspace(settings)
    name = settings.cluster.dataset
    if not workspace.dataset_folder(name).is_dir():
        say(f"importing {name}")
        import_dataset(settings, name, paths={})
    say("fetching the models")
    workspace.encoder_folder()
    workspace.generator_folder()
    build(settings)
    return workspace.dataset(name)


def _round(api: ApiClient, dataset: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    user = _somebody(dataset)
    wish = {"user_id": user, "k": 10, "reasons_deadline_ms": REASONS_DEADLINE_MS, "deadline_ms": 2000}
    say(f"asking for user {user}")
    first = api.with_reasons(wish)
    clicked = _something_else(dataset, user, first)
    say("clicking on something else")
    status = api.click(user, clicked)
    second = api.with_reasons(wish)
    second["user_id"] = user
    second["clicked"] = {"item_id": clicked, "title": _title(dataset, clicked), "status": status["status"]}
    return first, second


def _somebody(dataset: Dataset) -> str:
    """Pick whom to ask for: `USER`, or where the data set has no such user, who did most (ties: the first id)."""
    counts = Counter(dataset.events.user_ids.tolist())
    if USER in counts or not counts:
        return USER
    return str(min(counts, key=lambda user: (-counts[user], user)))


def _something_else(dataset: Dataset, user: str, first: dict[str, Any]) -> str:
    """Pick the best-known item that the user has not touched and the first list does not show."""
    touched = {i for u, i in zip(dataset.events.user_ids, dataset.events.item_ids, strict=True) if u == user}
    shown = {item["item_id"] for item in first["items"]}
    counts: dict[str, int] = {}
    for item in dataset.events.item_ids:
        counts[item] = counts.get(item, 0) + 1
    return max((i for i in counts if i not in touched | shown), key=lambda i: (counts[i], i))


def shows_the_product(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the click moved the list, and the model (now or, from the cache, before) wrote reasons for both."""
    # By item: the proofs of impression in the items differ between any two answers.
    lists = [[item["item_id"] for item in answer["items"]] for answer in (first, second)]
    written = [any(i["reason_source"] in ("llm", "cache") for i in answer["items"]) for answer in (first, second)]
    return lists[0] != lists[1] and all(written)


def _show(dataset: Dataset, first: dict[str, Any], second: dict[str, Any]) -> None:
    before = {item["item_id"]: item["rank"] for item in first["items"]}
    stdout.print(answer_table(first, title=f"Before: user {second['user_id']}"))
    stdout.print(f"[dim]{timings(first)}[/dim]\n")
    clicked = second["clicked"]["title"]
    stdout.print(answer_table(second, title=f"After a click on “{clicked}”", before=before))
    stdout.print(f"[dim]{timings(second)}[/dim]")


def _title(dataset: Dataset, item_id: str) -> str:
    return next((i.title for i in dataset.items if i.item_id == item_id), item_id)


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        return
