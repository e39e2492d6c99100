"""Releases: which artifacts belong together, and the process-local bundle loaded from them.

A release is a small JSON document. The pointer to the current one is a key of the online store (or a file in
offline use) that moves by compare-and-set. Called by pipelines (write) and serving (read).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.artifacts import ArtifactStore

KINDS = ("catalog", "embeddings", "index", "behaviour", "statistics", "ranker")
"""The kinds a release names, in the order they are built; `ranker` may be absent (retrieval order is served)."""


@dataclass(frozen=True, slots=True)
class Release:
    """The digests that belong together, plus the position of the item log they were built at."""

    artifacts: Mapping[str, str]
    item_log_seq: int = 0
    created_ms: int = 0
    parent: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def release_id(self) -> str:
        """A short name derived from the content: same artifacts, same name."""
        text = json.dumps([dict(self.artifacts), self.item_log_seq], sort_keys=True)
        return "r-" + hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Serialise; `from_json` is the inverse."""
        return json.dumps(
            {
                "artifacts": dict(self.artifacts),
                "item_log_seq": self.item_log_seq,
                "created_ms": self.created_ms,
                "parent": self.parent,
                "notes": dict(self.notes),
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Release:
        """Parse. Raises ValueError on a document that is no release."""
        try:
            body = json.loads(text)
            artifacts = {str(kind): ref for kind, ref in body["artifacts"].items()}
            missing = [k for k in KINDS if k not in artifacts and k != "ranker"]
            release = cls(artifacts, int(body["item_log_seq"]), int(body["created_ms"]), body["parent"], body["notes"])
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a release document ({type(error).__name__})") from error
        if missing:
            raise ValueError(f"release names no {', '.join(missing)}")
        if not all(isinstance(ref, str) and "/" in ref for ref in artifacts.values()):
            raise ValueError("not a release document: an artifact's reference is kind/digest")
        return release


def new_release(
    artifacts: Mapping[str, str], *, parent: str | None = None, item_log_seq: int = 0, **notes: Any
) -> Release:
    """Create a release of now."""
    return Release(dict(artifacts), item_log_seq, int(time.time() * 1000), parent, notes)


class ReleaseBook:
    """The releases that were built, as documents beside the artifacts; `wanted` is what `up` publishes."""

    _LATEST = "releases/latest"
    _GONE_BACK = "releases/gone-back"

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts

    def save(self, release: Release) -> None:
        """Keep a release and make it the latest."""
        self._artifacts.write_text(f"releases/{release.release_id}.json", release.to_json())
        self._artifacts.write_text(self._LATEST, release.release_id)
        self._artifacts.remove_text(self._GONE_BACK)

    def go_back(self, release: Release) -> None:
        """Want this release until another is built or saved: whatever was built after it has been taken back."""
        self._artifacts.write_text(self._GONE_BACK, release.release_id)

    def wanted(self) -> Release | None:
        """Return the release gone back to, else the one built last. Raises ValueError on a damaged document."""
        name = self._artifacts.read_text(self._GONE_BACK)
        release = None if name is None else self.get(name)
        return self.latest() if release is None else release

    def get(self, release_id: str) -> Release | None:
        """Return one release, or None where there is none of this name. Raises ValueError on a damaged document."""
        text = self._artifacts.read_text(f"releases/{release_id}.json")
        return None if text is None else Release.from_json(text)

    def names(self) -> list[str]:
        """Return the ids of all releases."""
        return list(self._artifacts.texts("releases"))

    def remove(self, release_id: str) -> None:
        """Forget a release; its artifacts stay."""
        self._artifacts.remove_text(f"releases/{release_id}.json")

    def latest(self) -> Release | None:
        """Return the release built last, or None before the first. Raises ValueError on a damaged document."""
        name = self._artifacts.read_text(self._LATEST)
        text = None if name is None else self._artifacts.read_text(f"releases/{name}.json")
        return None if text is None else Release.from_json(text)
