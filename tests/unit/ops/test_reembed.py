"""What `reembed` asks Ray for, and when `reembed --watch` makes a release."""

from __future__ import annotations

import pytest

from cluster import reembed
from cluster.config import Settings, load_settings
from cluster.reembed import Wish, _pieces, watch
from cluster.workspace import Workspace


@pytest.mark.parametrize("cpus", [0.25, 2.0])
def test_a_task_that_builds_a_piece_asks_for_no_more_cpus_than_an_encoder_actor(tmp_path, cpus: float) -> None:
    overrides = [f"pipelines.embedding.cpus_per_worker={cpus}", f"cluster.state={tmp_path}"]
    settings = load_settings("local", overrides, environ=None)
    assert _pieces(settings, Workspace(settings)).cpus == cpus


class Watched:
    """What a watch sees and does: looks at the item log that are told beforehand, releases and pauses it asked for."""

    def __init__(self, *looks: tuple[int, float]) -> None:
        self.looks = list(looks)
        self.done: list[str | float] = []

    def waiting_changes(self, settings: Settings, *, now_ms: int) -> tuple[int, float]:
        return self.looks.pop(0)

    def reembed(self, settings: Settings, wish: Wish) -> None:
        self.done.append("release")

    def sleep(self, seconds: float) -> None:
        self.done.append(seconds)


@pytest.fixture
def watching(tmp_path, monkeypatch):
    """Return what watches an item log for some looks and gives what it did."""
    of = {"watch_changes": 10, "watch_age_s": 60, "watch_poll_s": 2.5}
    overrides = [f"cluster.state={tmp_path}", *(f"pipelines.embedding.{name}={value}" for name, value in of.items())]
    settings = load_settings("local", overrides, environ={})

    def run(*looks: tuple[int, float]) -> list[str | float]:
        watched = Watched(*looks)
        monkeypatch.setattr(reembed, "waiting_changes", watched.waiting_changes)
        monkeypatch.setattr(reembed, "reembed", watched.reembed)
        made = watch(settings, Wish(), rounds=len(looks), sleep=watched.sleep)
        assert made == watched.done.count("release")
        return watched.done

    return run


@pytest.mark.parametrize(
    ("waiting", "oldest_s", "due"),
    [
        (0, 0.0, False),
        (9, 59.9, False),
        (10, 0.0, True),
        (11, 0.0, True),
        (1, 59.9, False),
        (1, 60.0, True),
        (0, 1e9, False),
    ],
)
def test_a_release_is_due_at_so_many_changes_or_once_one_has_waited_so_long(
    watching, capsys, waiting: int, oldest_s: float, due: bool
) -> None:
    assert watching((waiting, oldest_s)) == (["release", 2.5] if due else [2.5])
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{waiting} changes of items wait, the oldest for {oldest_s:.0f} s" in said) is due
    assert due or not said


def test_watching_makes_a_release_at_each_look_that_finds_one_due_and_pauses_after_each(watching) -> None:
    assert watching((1, 57.5), (1, 60.0), (0, 0.0), (12, 1.0)) == [2.5, "release", 2.5, 2.5, "release", 2.5]
