"""What `reembed` asks Ray for."""

from __future__ import annotations

import pytest

from cluster.config import load_settings
from cluster.reembed import _pieces
from cluster.workspace import Workspace


@pytest.mark.parametrize("cpus", [0.25, 2.0])
def test_a_task_that_builds_a_piece_asks_for_no_more_cpus_than_an_encoder_actor(tmp_path, cpus: float) -> None:
    overrides = [f"pipelines.embedding.cpus_per_worker={cpus}", f"cluster.state={tmp_path}"]
    settings = load_settings("local", overrides, environ=None)
    assert _pieces(settings, Workspace(settings)).cpus == cpus
