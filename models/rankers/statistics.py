"""What rankers need to know of items alone; the release's statistics snapshot satisfies it.

A protocol, so that training can pass a snapshot of earlier events and serving the newest one.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class ItemStatistics(Protocol):
    """Per-item columns of equal length, one value per catalog row."""

    @property
    def popularity(self) -> npt.NDArray[np.float32]:
        """Positive events per item."""
        ...

    @property
    def recent(self) -> npt.NDArray[np.float32]:
        """Positive events per item, decayed by age."""
        ...

    @property
    def first_ms(self) -> npt.NDArray[Any]:
        """Time of an item's first event."""
        ...
