"""The bodies of `raycommend releases list|show|verify|gc`: what was built, what of it is whole, and what may go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.config import Settings
from cluster.errors import OperatorError
from cluster.publish import current
from cluster.stack import online
from cluster.workspace import Workspace
from models.artifacts import ArtifactError
from models.releases import KINDS, Release

YOUNG_S = 3600.0
"""An artifact younger than this may belong to a build that is under way."""


def list_releases(settings: Settings) -> list[dict[str, Any]]:
    """Return all releases, newest first, with what each is to this deployment."""
    book = Workspace(settings).releases()
    serving, held = _in_use(settings)
    rows = []
    for name in book.names():
        release = _read(settings, name)
        rows.append(
            {
                "release": name,
                "created_ms": release.created_ms,
                "items": release.notes.get("items"),
                "dataset": release.notes.get("dataset"),
                "item_log_seq": release.item_log_seq,
                "parent": release.parent,
                "serving": serving is not None and serving.release_id == name,
                "held": name in held,
            }
        )
    return sorted(rows, key=lambda row: -int(row["created_ms"]))


def show_release(settings: Settings, name: str) -> dict[str, Any]:
    """Return one release with the manifest of each of its artifacts."""
    release = _read(settings, name)
    artifacts = Workspace(settings).artifacts()
    manifests = {}
    for kind, ref in release.artifacts.items():
        try:
            manifests[kind] = {"ref": ref, **artifacts.meta(ref)}
        except ArtifactError as error:
            manifests[kind] = {"ref": ref, "error": str(error)}
    return {"release": name, "item_log_seq": release.item_log_seq, "notes": dict(release.notes), "artifacts": manifests}


def verify_release(settings: Settings, name: str) -> list[str]:
    """Return what is wrong with the files of a release, one sentence each; empty where all match their digests."""
    artifacts = Workspace(settings).artifacts()
    wrong = []
    for ref in _read(settings, name).artifacts.values():
        try:
            artifacts.get(ref)
        except ArtifactError as error:
            wrong.append(str(error))
    return wrong


def collect(settings: Settings, *, dry_run: bool = False) -> dict[str, list[str]]:
    """Remove releases and artifacts that nothing needs; return what went.

    Kept: what is served, the release before it, what any replica holds, what was built last or gone back to, and young
    artifacts.
    """
    workspace = Workspace(settings)
    book, artifacts = workspace.releases(), workspace.artifacts()
    serving, held = _in_use(settings)
    roots = [release for release in (book.latest(), book.wanted(), serving) if release is not None]
    kept = {name for release in roots for name in (release.release_id, release.parent)}
    kept |= held
    gone = [name for name in book.names() if name not in kept]
    needed = {ref for name in book.names() if name in kept for ref in _read(settings, name).artifacts.values()}
    if serving is not None:
        needed |= set(serving.artifacts.values())
    unneeded = [ref for ref in _every(workspace) if ref not in needed and artifacts.age_s(ref) > YOUNG_S]
    if not dry_run:
        for name in gone:
            book.remove(name)
        for ref in unneeded:
            artifacts.discard(ref)
    return {"releases": gone, "artifacts": unneeded}


def _every(workspace: Workspace) -> Iterator[str]:
    artifacts = workspace.artifacts()
    for kind in KINDS:
        yield from artifacts.list(kind)


def _in_use(settings: Settings) -> tuple[Release | None, set[str]]:
    """Return what is served and what replicas hold; nothing where nothing runs."""
    if not online(settings):
        return None, set()
    serving, standings = current(settings)
    return serving, {name for standing in standings for name in standing.held}


def _read(settings: Settings, name: str) -> Release:
    try:
        release = Workspace(settings).releases().get(name)
    except ValueError as error:
        raise OperatorError(f"{name}: {error}") from error
    if release is None:
        raise OperatorError(f"there is no release {name}: see `raycommend releases list`")
    return release
