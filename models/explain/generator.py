"""The port of the language model that writes reasons, its errors, and the fake beside it.

A generator gets evidence, never text or sampling fields from a caller: prompt, grammar and temperature are its own.
Implemented by `VllmGenerator` and `ScriptedGenerator`; called by the explainer. Knows nothing of caches or checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from models.explain.aspects import Aspects, template_verdict
from models.explain.evidence import Evidence
from models.explain.interests import Interests, template_summary


class GeneratorError(Exception):
    """The generator cannot write now: not started, its engine died or it refused the request."""


class GeneratorBusy(GeneratorError):
    """As many requests as allowed are in flight; nothing was queued."""


@dataclass(frozen=True, slots=True)
class ReasonRequest:
    """One reason wanted. Lower `priority` is served first; `tenant` separates prefix caches."""

    evidence: Evidence
    language: str = "en"
    priority: int = 0
    tenant: str = "main"


def model_of(folder: Path, grammar: str = "closed") -> str:
    """Return the identity of who writes: the folder's name, made by the hub from URI and digest, and the level."""
    return folder.name if grammar == "closed" else f"{folder.name}+{grammar}"


class Generator(Protocol):
    """Writes a sentence from an evidence record, two about a user's interests, or a verdict on an item's aspects."""

    @property
    def model(self) -> str:
        """Identity of the weights; part of every cache key."""
        ...

    async def start(self) -> None:
        """Make ready; may take a minute. Raises GeneratorError with what to change. Harmless when started."""
        ...

    async def generate(self, request: ReasonRequest) -> str:
        """Return the sentence. Cancelling the awaiting task frees the engine's slot. Raises GeneratorError."""
        ...

    async def summarise(self, interests: Interests, *, tenant: str = "main") -> str:
        """Return what a user is interested in. Raises GeneratorError, also when nothing is known of the user."""
        ...

    async def appraise(self, aspects: Aspects, *, tenant: str = "main") -> str:
        """Return what reviews say of each aspect, a line each. Raises GeneratorError, also where there is none."""
        ...

    async def healthy(self) -> bool:
        """Whether the engine lives and makes progress."""
        ...

    async def close(self) -> None:
        """Stop, ending every process of the engine. Harmless when not started."""
        ...


class ScriptedGenerator:
    """A generator for tests: `script` answers, `gate` (when given) holds answers back until it is set.

    `requests` lists what was asked in order; `cancelled` counts aborted calls; `running` those under way.
    """

    def __init__(
        self,
        script: Callable[[ReasonRequest], str],
        *,
        gate: asyncio.Event | None = None,
        model: str = "scripted",
    ) -> None:
        self._script = script
        self._gate = gate
        self._model = model
        self.requests: list[ReasonRequest] = []
        self.cancelled = 0
        self.running = 0
        self.started = False

    @property
    def model(self) -> str:
        """See `Generator.model`."""
        return self._model

    async def start(self) -> None:
        """See `Generator.start`."""
        self.started = True

    async def generate(self, request: ReasonRequest) -> str:
        """See `Generator.generate`; whatever `script` raises comes out here."""
        self.requests.append(request)
        self.running += 1
        try:
            await (self._gate.wait() if self._gate is not None else asyncio.sleep(0))
            return self._script(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def summarise(self, interests: Interests, *, tenant: str = "main") -> str:
        """See `Generator.summarise`: the template."""
        await asyncio.sleep(0)
        return template_summary(interests)

    async def appraise(self, aspects: Aspects, *, tenant: str = "main") -> str:
        """See `Generator.appraise`: the template."""
        await asyncio.sleep(0)
        return template_verdict(aspects)

    async def healthy(self) -> bool:
        """See `Generator.healthy`."""
        return self.started

    async def close(self) -> None:
        """See `Generator.close`."""
        self.started = False
