"""The one shape in which long work reports how far it is; a command line turns it into bars.

Called by the model hub and the importers. Knows nothing of terminals.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""`progress(step, done, total)`: bytes or rows of a named step so far; `total` is None while unknown."""


def silent(step: str, done: int, total: int | None) -> None:
    """Report nothing: the default where nobody watches."""
