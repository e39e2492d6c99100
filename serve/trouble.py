"""What a fake meets before it answers: an error, or silence. Part of every fake; tests switch it on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass


@dataclass(slots=True)
class Trouble:
    """What a fake does before it answers. `calls` counts every call, answered or not."""

    error: BaseException | None = None
    """Raised, where given."""
    hangs: bool = False
    """Never answers; a caller's timeout ends it."""
    calls: int = 0

    async def meet(self) -> None:
        """Count the call, then raise or hang where told to."""
        self.calls += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
