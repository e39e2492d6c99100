"""What the port contracts share: a pool, a call, reasons to ask for, and clients over handles that pickle."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from models.explain.evidence import build_evidence
from serve.context import StageCall
from serve.deployments.batches import each
from serve.fakes import LocalHandle
from serve.ports import ReasonTask


@pytest.fixture(scope="session", autouse=True)
def _ray_s_own_warnings() -> None:
    """Importing Ray Serve warns about its own use of pydantic; the clients import its exceptions when first called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.serve.exceptions  # noqa: F401


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as executor:
        yield executor


@pytest.fixture
def call(tiny) -> StageCall:
    return StageCall("main", tiny.release.release_id, 5000.0)


@pytest.fixture
def client_of() -> Callable[..., Any]:
    """Makes the client of a coalesced stage whose deployment runs `method` per member, as method `name`."""

    def make(client: Callable[..., Any], name: str, method: Any) -> Any:
        async def many(members):
            return "replica-1", await each(members, method)

        return client(LocalHandle(SimpleNamespace(**{name: many})), min_replicas=1, max_waiting=64)

    return make


@pytest.fixture
def task(tiny):
    def make(count: int, *, allow_llm: bool = True) -> ReasonTask:
        evidence = tuple(build_evidence([], r, catalog=tiny.bundle.catalog) for r in range(count))
        return ReasonTask(evidence, "en", "main", 2000.0, allow_llm)

    return make
