"""Settings of the event consumer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ConsumerSettings(BaseModel):
    """How events become statistics and the event log."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    half_life_days: float = Field(14.0, gt=0)
    """Live popularity halves in this time. Fixed in a store by its first event."""
    followers: int = Field(32, ge=0, le=255)
    """Items that followed an item, kept per item and bucket; beyond that the weakest goes."""
    items_per_bucket: int = Field(20_000, ge=1)
    """Items with live statistics per bucket; beyond that the weakest go."""
    batch: int = Field(100, ge=1, le=10_000)
    """Entries taken from a bucket at a time."""
    idle_s: float = Field(0.2, gt=0)
    """Pause after a look that found nothing."""
    snapshot_s: float = Field(5.0, gt=0)
    """Least time between two snapshots; a snapshot that takes long waits ten times as long as it took."""
    log_s: float = Field(10.0, gt=0)
    """Longest time between two files of the event log."""
    log_events: int = Field(50_000, ge=1)
    """Most events in one file of the event log."""
    log_files: int = Field(32, ge=2)
    """Files of one day from which on they are compacted into one."""
