"""What the command line prints: progress on stderr, results on stdout, one JSON line last with `--json`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False)


def say(text: str) -> None:
    """Tell the person at the terminal what is going on."""
    stderr.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}")


def result(body: Mapping[str, Any]) -> None:
    """Print a machine-readable result: one JSON line on stdout."""
    sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
    sys.stdout.flush()


@contextmanager
def bars() -> Iterator[Any]:
    """Yield a `models.progress.Progress` that draws one bar per step on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr, transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield report


class Pace:
    """Bars with items/s and what is left; where nobody watches a terminal, a line now and then. Use with `with`."""

    def __init__(
        self, say: Callable[[str], None], *, every_s: float = 10.0, clock: Callable[[], float] = time.time
    ) -> None:
        self._say, self._every_s, self._clock = say, every_s, clock
        self._steps: dict[str, list[float]] = {}  # began, items then, now, items now
        self._said = 0.0
        self._bars = bars() if stderr.is_terminal else None

    def __enter__(self) -> Pace:
        self._draw = self._bars.__enter__() if self._bars is not None else None
        return self

    def __exit__(self, *exit_: Any) -> None:
        if self._bars is not None:
            self._bars.__exit__(*exit_)

    def report(self, step: str, done: int, total: int | None) -> None:
        """Take one report, see `models.progress.Progress`."""
        now = self._clock()
        began, first, *_ = self._steps.setdefault(step, [now, done, now, done])
        self._steps[step] = [began, first, now, done]
        rate = (done - first) / max(now - began, 1e-9)
        if self._draw is not None:
            self._draw(step, done, total)
        elif total and rate and (now - self._said >= self._every_s or done == total):
            self._said = now
            left = f", {(total - done) / rate:.0f} s left" if done < total else ""
            self._say(f"{step}: {done:,} of {total:,}, {rate:.0f} items/s{left}")

    def facts(self) -> dict[str, Any]:
        """Return items, seconds and items/s of each step, start-up apart."""
        return {
            step: {
                "items": int(done - first),
                "seconds": round(now - began, 3),
                "items_per_s": round((done - first) / (now - began), 1) if now > began else None,
            }
            for step, (began, first, now, done) in self._steps.items()
        }


def answer_table(answer: Mapping[str, Any], *, title: str, before: Mapping[str, int] | None = None) -> Table:
    """Return one answer as a table; `before` maps item id → earlier rank and adds a column of what moved."""
    table = Table(title=title, title_justify="left", show_lines=False, expand=True)
    table.add_column("#", justify="right", width=3)
    if before is not None:
        table.add_column("moved", width=6)
    table.add_column("title", ratio=3)
    table.add_column("score", justify="right", width=7)
    table.add_column("sources", ratio=2)
    table.add_column("reason", ratio=5)
    for item in answer["items"]:
        row = [str(item["rank"])]
        if before is not None:
            row.append(moved(item["rank"], before.get(item["item_id"])))
        reason = f"{item['reason'] or ''} [dim]({item['reason_source']})[/dim]"
        table.add_row(*row, item["title"], f"{item['score']:.4f}", ", ".join(item["sources"]), reason)
    return table


def moved(rank: int, before: int | None) -> str:
    """Return how an item moved, for people."""
    if before is None:
        return "[green]new[/green]"
    if before == rank:
        return "="
    return f"[green]↑{before - rank}[/green]" if before > rank else f"[red]↓{rank - before}[/red]"


def timings(answer: Mapping[str, Any]) -> str:
    """Return the time per stage as one line."""
    return "  ".join(f"{name} {value:.1f} ms" for name, value in answer["timings_ms"].items())
