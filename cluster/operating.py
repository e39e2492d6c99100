"""What every command has: its common options, the settings, errors as sentences, and an orderly end.

Called by the modules that hold commands. Errors that an operator can put right are one sentence and exit code 1.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.markup import escape

from cluster.config import Settings, load_settings
from cluster.console import result, stderr
from cluster.errors import OperatorError
from cluster.valkey import ValkeyStartError
from models.artifacts import ArtifactError
from models.hub import HubError
from models.rankers.compressed import RankerError
from pipelines.dataset import DatasetError
from pipelines.embedding.blocks import BlockError
from pipelines.errors import BuildError
from pipelines.importers import ImportFailed

FIXABLE = (
    OperatorError,
    ValkeyStartError,
    ArtifactError,
    DatasetError,
    HubError,
    ImportFailed,
    BlockError,
    BuildError,
    RankerError,
)
"""Errors whose message names the fix."""

Env = Annotated[str, typer.Option("--env", help="Settings to start from: a name in cluster/envs, or a YAML file.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override one setting: section.field=value. Repeatable.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON line last on stdout.")]


@contextmanager
def operating(env: str, overrides: list[str] | None, *, json: bool = False, secrets: bool = True) -> Iterator[Settings]:
    """Load the settings; turn errors with a fix into one sentence, and signals into an orderly end.

    With `json` the error is a JSON line too. Commands that start nothing do without `secrets`.
    """
    # SIGTERM unwinds like Ctrl-C, so that `down` and a supervisor get the same orderly stop.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield load_settings(env, overrides or [], environ=os.environ if secrets else None)
    except FIXABLE as error:
        stderr.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        if json:
            result({"ok": False, "error": str(error)})
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        stderr.print("stopped")
        raise typer.Exit(0) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
