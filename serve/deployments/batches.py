"""Runs the members of one coalesced call side by side: a result or an error per member, each within its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from serve.context import StageCall
from serve.errors import DeadlineExceeded, DependencyError, RecommendError

Member = TypeVar("Member")
Result = TypeVar("Result")


async def each(
    members: Sequence[tuple[StageCall, Member]], run: Callable[[StageCall, Member], Awaitable[Result]]
) -> list[Result | RecommendError]:
    """Return one result or error per member, in order; a member's failure never touches another."""
    return list(await asyncio.gather(*(_one(call, member, run) for call, member in members)))


async def _one(call: StageCall, member: Any, run: Callable[[StageCall, Any], Awaitable[Any]]) -> Any:
    try:
        async with asyncio.timeout(call.remaining_ms / 1000.0):
            return await run(call, member)
    except TimeoutError:
        return DeadlineExceeded("the stage ran out of time")
    except RecommendError as error:
        return error
    except Exception as error:
        # Only the type travels: a message may hold what a user sent.
        return DependencyError(f"the stage failed with {type(error).__name__}")
