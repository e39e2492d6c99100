"""Lines of progress: how fast a step is, what is left of it, and when that is said."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rich.console import Console

from cluster import console
from cluster.console import Pace


class Watch:
    """A clock that a test sets, and the lines that were said."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def said(self) -> list[str]:
        """Return the lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def pace(watch, monkeypatch) -> Iterator[Pace]:
    """A pace where nobody watches a terminal."""
    monkeypatch.setattr(console, "stderr", Console(file=io.StringIO(), force_terminal=False))
    with Pace(watch.say, clock=lambda: watch.now) as pace:
        yield pace


def test_a_line_tells_items_per_second_since_the_first_report_and_what_is_left(pace, watch) -> None:
    pace.report("embed", 1_000, 5_000)  # found finished: it says nothing of how fast this run is
    assert watch.said() == []
    watch.now += 10
    pace.report("embed", 2_000, 5_000)
    assert watch.said() == ["embed: 2,000 of 5,000, 100 items/s, 30 s left"]
    watch.now += 10
    pace.report("embed", 4_000, 5_000)
    assert watch.said() == ["embed: 4,000 of 5,000, 150 items/s, 7 s left"]


def test_lines_come_ten_seconds_apart_but_the_last_one_comes_at_once(pace, watch) -> None:
    pace.report("embed", 0, 100)
    for done, expected in ((1, 1), (2, 0), (3, 0), (4, 1)):
        watch.now += 4
        pace.report("embed", done, 100)
        assert len(watch.said()) == expected, done
    watch.now += 1
    pace.report("embed", 100, 100)
    assert watch.said() == ["embed: 100 of 100, 6 items/s"]


def test_nothing_is_said_of_a_step_that_does_not_move_or_has_no_known_end(pace, watch) -> None:
    for step, total in (("still", 10), ("endless", None)):
        for done in (3, 3 if total else 5):
            watch.now += 60
            pace.report(step, done, total)
    assert watch.said() == []


def test_the_facts_tell_each_step_apart_and_leave_its_start_out(pace, watch) -> None:
    pace.report("embed", 1_000, 5_000)
    watch.now += 20
    pace.report("index", 0, 3)
    pace.report("embed", 5_000, 5_000)
    watch.now += 8
    pace.report("index", 3, 3)
    pace.report("once", 7, 7)
    assert pace.facts() == {
        "embed": {"items": 4_000, "seconds": 20.0, "items_per_s": 200.0},
        "index": {"items": 3, "seconds": 8.0, "items_per_s": 0.4},
        "once": {"items": 0, "seconds": 0.0, "items_per_s": None},
    }


def test_at_a_terminal_bars_are_drawn_and_taken_away_and_no_line_is_said(watch, monkeypatch) -> None:
    drawn: list[Any] = []

    @contextmanager
    def bars() -> Iterator[Any]:
        yield lambda *report: drawn.append(report)
        drawn.append("gone")

    monkeypatch.setattr(console, "stderr", Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(console, "bars", bars)
    with Pace(watch.say, clock=lambda: watch.now) as pace:
        pace.report("embed", 0, 10)
        watch.now += 60
        pace.report("embed", 10, 10)
    assert drawn == [("embed", 0, 10), ("embed", 10, 10), "gone"]
    assert watch.said() == [] and pace.facts()["embed"]["items"] == 10
