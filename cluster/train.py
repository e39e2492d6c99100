"""The body of `raycommend train`: a ranker from the events so far, served only where it wins on later ones.

Learns from the imported events and from those that the running deployment wrote since. Everything else of the release
is made by the same builder as `build`, which reuses what is unchanged. A training that was killed goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from cluster.config import Settings
from cluster.console import bars, say, stderr
from cluster.errors import OperatorError
from cluster.prepare import build_release, embedder_here, keep_release
from cluster.publish import folded, refuse_other_encoder, release_now
from cluster.ray_job import job_ray
from cluster.stack import online
from cluster.workspace import Workspace
from models.artifacts import Artifact
from models.catalog import ItemCatalog
from models.consumer.event_log import read_event_log
from models.events import EventLog
from models.hub import resolve
from models.progress import Progress
from models.rankers.second import SECOND_RANKER
from models.releases import Release
from pipelines.dataset import Dataset
from pipelines.makers import CompressedTraining, RankerMaker, known_events
from pipelines.second_ranker import Served
from pipelines.text_maker import TextTraining
from pipelines.training.checkpoint import Checkpoint
from serve.auth import DEFAULT_TENANT

PUBLISHED, UNCHANGED, LOST = "published", "unchanged", "lost"


@dataclass(frozen=True, slots=True)
class Wish:
    """What `train` is asked for."""

    kind: str = "compressed"
    """Back end: `compressed` or `text`."""
    incremental: bool = False
    """Go on from the ranker served now, on later events only."""
    student: int | None = None
    """Distil the text ranker served now into so many layers."""
    dataset: str | None = None
    """Imported data set; the default is `cluster.dataset`."""


@dataclass(slots=True)
class _Checkpoints:
    """Opens the checkpoint of a training and remembers it, so that it goes once the artifact is kept."""

    workspace: Workspace
    opened: list[Checkpoint] = field(default_factory=list)

    def __call__(self, key: str) -> Checkpoint:
        checkpoint = Checkpoint.under(self.workspace.training, key)
        if checkpoint.folder.is_dir():
            say("going on with the training that was interrupted")
        self.opened.append(checkpoint)
        return checkpoint

    def clear(self) -> None:
        for checkpoint in self.opened:
            checkpoint.clear()


def train(settings: Settings, wish: Wish) -> dict[str, Any]:
    """Train, judge and, where the ranker wins, publish; return what happened: `outcome` and figures.

    Raises OperatorError where there is nothing to go on from.
    """
    started = time.monotonic()
    workspace = Workspace(settings)
    refuse_other_encoder(settings)
    data = workspace.dataset(wish.dataset)
    before = release_served(settings, data)
    served, cascade = served_ranker(settings, before), _served_cascade(settings, before)
    live = read_event_log(workspace.events / DEFAULT_TENANT)
    _check(served, cascade, wish)
    since = _since(served) if wish.incremental else None
    if since is not None and not _later([data.events, live], _items(settings, data), since):
        return {"outcome": UNCHANGED, "said": "no event is later than those the ranker served now has learned from"}
    checkpoints = _Checkpoints(workspace)
    asked = settings.pipelines.model_copy(update={"train_ranker": True})
    settings = settings.model_copy(update={"pipelines": asked})
    several = (settings.pipelines.text.workers if wish.kind == "text" else settings.pipelines.training.id_shards) > 1
    with _told() as progress, job_ray(settings, say=say) if several else nullcontext():
        maker: RankerMaker = _maker(settings, wish, progress, live, served, since, checkpoints)
        embedder = embedder_here(settings)
        report = build_release(settings, data, embedder=embedder, progress=progress, ranker=maker, served=cascade)
    made = next(step for step in report.steps if step.name == "ranker")
    metrics, together = dict(made.meta["metrics"]), dict(report.release.notes.get("cascade", {}))
    facts: dict[str, Any] = {
        "kind": wish.kind,
        "ranker": made.ref,
        "parent": made.meta.get("parent"),
        "window_ms": made.meta.get("window_ms"),
        "reused": made.reused,
        "seconds": round(time.monotonic() - started, 1),
        "metrics": metrics,
        **({"cascade": together} if together else {}),
    }
    lost = _lost(metrics, together)
    if served is not None and made.ref == served.ref:
        outcome, said = UNCHANGED, "the ranker served now was made of the same events and settings"
    elif not lost:
        compared = served is None or "fused_vs_incumbent" in metrics
        _warn(settings, metrics, compared=compared and (cascade is None or "vs_served" in together))
        keep_release(settings, report.release)
        facts["release"] = report.release.release_id
        outcome, said = PUBLISHED, f"release {report.release.release_id}"
    else:
        outcome, said = LOST, f"{lost}; the release served now stays"
    # Only now: a kill before the artifact is kept must not cost the training.
    checkpoints.clear()
    return {"outcome": outcome, "said": said, **facts}


def _lost(metrics: Mapping[str, Any], together: Mapping[str, Any]) -> str:
    """Return why the ranker must not be served, empty where it may: itself, or together with the one behind it."""
    if not metrics["switch_on"]:
        return str(metrics["reason"])
    if together.get("vs_served", {}).get("mean", 0.0) < 0:
        return "what would be served is below the cascade served now on later events"
    return ""


def _warn(settings: Settings, metrics: Mapping[str, Any], *, compared: bool) -> None:
    """Say what the verdict does not cover, before the ranker is published."""
    if not compared:
        say("what is served now is of another kind or of other vectors: the new ranker was not compared with it")
    brought = metrics.get("fused_vs_without_text")
    if brought is not None and brought["lower"] <= 0:
        say(
            "that reading texts brings anything is not shown: on later events NDCG@10 differs from the same weights "
            f"without it by {brought['mean']:+.4f} [{brought['lower']:+.4f}, {brought['upper']:+.4f}]"
        )
    of = settings.serve.pipeline
    takes = metrics.get("ms_per_100_candidates", 0.0) * of.candidates / 100
    if takes > of.rank.budget_ms:
        say(
            f"it takes {takes:.0f} ms here for {of.candidates} candidates and serve.pipeline.rank.budget_ms is "
            f"{of.rank.budget_ms:g}: most answers will keep retrieval order; rank fewer, or serve it on a GPU"
        )


def _maker(
    settings: Settings,
    wish: Wish,
    progress: Progress,
    live: EventLog,
    served: Artifact | None,
    since_ms: int | None,
    checkpoint: Callable[[str], Checkpoint],
) -> RankerMaker:
    of, retrieval = settings.pipelines, settings.models.retrieval
    if wish.kind == "compressed":
        return CompressedTraining(of, retrieval, progress, live, served, since_ms, checkpoint)
    workspace = Workspace(settings)
    uri = of.text.start_uri or settings.models.encoder.uri
    return TextTraining(
        of,
        retrieval,
        uri,
        lambda: resolve(uri, cache=workspace.models),
        progress=progress,
        live=live,
        served=served,
        since_ms=since_ms,
        student=wish.student,
        checkpoint=checkpoint,
    )


def release_served(settings: Settings, data: Dataset) -> Release | None:
    """Return the release that is served, where it has a ranker of this data set: else there is nothing to compare."""
    before = release_now(settings, reachable=online(settings))
    if before is None or "ranker" not in before.artifacts or before.notes.get("dataset") != data.name:
        return None
    return before


def served_ranker(settings: Settings, before: Release | None) -> Artifact | None:
    """Return the ranker served now, the first of a cascade, verified; None where there is none."""
    return None if before is None else Workspace(settings).artifacts().get(before.artifacts["ranker"])


def _served_cascade(settings: Settings, before: Release | None) -> Served | None:
    """Return both rankers where two are asked, as these settings do where a release has two."""
    first = served_ranker(settings, before)
    if before is None or first is None or SECOND_RANKER not in before.artifacts:
        return None
    if not settings.models.ranker.cascade.candidates:
        return None
    return Served(first, Workspace(settings).artifacts().get(before.artifacts[SECOND_RANKER]))


def _check(served: Artifact | None, cascade: Served | None, wish: Wish) -> None:
    """Refuse to go on from, or to distil, what is of another kind or not there, and to take a cascade's place."""
    if cascade is not None and wish.kind == "text":
        raise OperatorError(
            "a cascade of a compressed and a text ranker is served now, and a text ranker trained here would take the "
            "place of both without being compared with them: train --kind compressed, which is; or name another model "
            "in models.ranker.text_uri and build; or switch it off with models.ranker.cascade.candidates=0"
        )
    if wish.student is not None and (wish.kind != "text" or wish.incremental):
        raise OperatorError("--student distils a text ranker: it goes with --kind text and without --incremental")
    if wish.student is None and not wish.incremental:
        return
    kind = None
    if served is not None:
        kind = "compressed" if (served.path / "ranker.safetensors").is_file() else "text"
    if kind != wish.kind:
        asked = "--student distils" if wish.student is not None else "--incremental goes on from"
        there = "there is none" if kind is None else f"that is a {kind} one"
        raise OperatorError(f"{asked} the {wish.kind} ranker served now, and {there}: leave it out")


def _since(served: Artifact | None) -> int:
    window: list[int] = [] if served is None else served.meta.get("window_ms", [])
    if len(window) != 2:
        raise OperatorError("--incremental goes on from the ranker served now, and there is none: leave it out")
    return int(window[1])


def _items(settings: Settings, data: Dataset) -> ItemCatalog:
    """Return the items that the release will hold."""
    return ItemCatalog.of(folded(settings, data, reachable=online(settings)).applied(data).items)


def _later(logs: Sequence[EventLog], catalog: ItemCatalog, moment_ms: int) -> bool:
    """Return whether there is anything to learn after a moment; no training reads events on items nobody knows."""
    after = (log.take(log.timestamps_ms > moment_ms) for log in logs)
    return any(len(known_events(log, catalog)) for log in after)


@contextmanager
def _told() -> Iterator[Progress]:
    """Yield a progress that draws bars on a terminal, and elsewhere says each step once."""
    if stderr.is_terminal:
        with bars() as progress:
            yield progress
        return
    said: set[str] = set()

    def tell(step: str, done: int, total: int | None) -> None:
        if step not in said:
            said.add(step)
            say(step)

    yield tell
