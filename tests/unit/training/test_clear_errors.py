"""What goes wrong in offline work is one sentence that names the fix, not a traceback."""

import pytest
from ray.train import ControllerError, WorkerGroupError

from cluster import reembed
from cluster.config import load_settings
from cluster.errors import OperatorError
from cluster.operating import FIXABLE
from cluster.workspace import Workspace
from models.encoder import HashEncoder
from pipelines.errors import BuildError
from pipelines.index_shards import cut
from pipelines.training.text_workers import cause_of


def test_going_on_from_a_ranker_of_other_vectors_names_the_option_to_leave_out(
    place, monkeypatch, make_taste_log, imported, run
) -> None:
    log = make_taste_log(160)
    early = log.take(log.timestamps_ms <= sorted(log.timestamps_ms)[len(log) * 3 // 4])
    imported(place, early, years=False)
    result, first = run(place, "train")
    assert (result.exit_code, first["outcome"]) == (0, "published"), result.output
    imported(place, log, years=False)
    other = ("models.encoder.dimension=8", "models.encoder.max_tokens=64")
    monkeypatch.setattr(Workspace, "encoder", lambda self, *, threads=None: HashEncoder(8))
    result, answer = run(place, "train", "--incremental", sets=other)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "8 dimensions" in answer["error"] and "leave out --incremental" in answer["error"]


def test_an_index_that_does_not_fit_names_the_setting(place, monkeypatch, make_taste_log, imported, run) -> None:
    imported(place, make_taste_log(3), items=1100, years=False)
    wide = ("models.encoder.dimension=2000", f"pipelines.index_memory_bytes={16 << 20}", "pipelines.train_ranker=false")
    monkeypatch.setattr(Workspace, "encoder", lambda self, *, threads=None: HashEncoder(2000))
    result, answer = run(place, "build", sets=wide)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "raise pipelines.index_memory_bytes" in answer["error"]


def test_pieces_that_do_not_fit_at_the_same_time_name_both_settings() -> None:
    assert len(cut(5000, 384, memory_bytes=16 << 20, at_once=2)) == 3
    with pytest.raises(BuildError, match=r"32 pieces at the same time: raise pipelines\.index_memory_bytes .*workers"):
        cut(5000, 384, memory_bytes=16 << 20, at_once=32)


@pytest.mark.parametrize("error", [BuildError("index piece x: damaged"), *(kind("no") for kind in FIXABLE[:2])])
def test_watching_goes_on_after_a_release_that_could_not_be_made(tmp_path, monkeypatch, error) -> None:
    settings = load_settings("local", [f"cluster.state={tmp_path}"], environ={})
    tried = []

    def fails_once(*_):
        tried.append(1)
        if len(tried) == 1:
            raise error

    monkeypatch.setattr(reembed, "waiting_changes", lambda *_, **__: (10_000, 0.0))
    monkeypatch.setattr(reembed, "reembed", fails_once)
    assert reembed.watch(settings, reembed.Wish(), rounds=2, sleep=lambda _: None) == 1
    assert len(tried) == 2


def test_watching_goes_on_while_the_store_is_away_and_says_so_once(tmp_path, monkeypatch, capsys) -> None:
    settings = load_settings("local", [f"cluster.state={tmp_path}"], environ={})
    looks = iter([OperatorError("store away"), OperatorError("store away"), (10_000, 0.0)])

    def waiting(*_, **__):
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(reembed, "waiting_changes", waiting)
    monkeypatch.setattr(reembed, "reembed", lambda *_: None)
    assert reembed.watch(settings, reembed.Wish(), rounds=3, sleep=lambda _: None) == 1
    out, err = capsys.readouterr()
    assert (out + err).count("store away") == 1


def test_of_several_failed_workers_the_one_that_failed_first_is_named() -> None:
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1")
    error = WorkerGroupError("a page of tracebacks", {0: lost, 1: OSError("no space\nleft on device")})
    assert cause_of(error) == "worker 1: OSError: no space left on device"
    assert cause_of(ControllerError(ValueError("no room"))) == "ValueError: no room"
