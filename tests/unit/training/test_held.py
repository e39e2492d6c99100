"""What a training lends out of users' histories is private, and gone when it ends, fails or is killed."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import BuildError
from pipelines.held import held_file, held_folder, sweep
from pipelines.training.checkpoint import Checkpoint

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.held import held_folder
from pipelines.training.checkpoint import Checkpoint
root = Path(sys.argv[1])
with Checkpoint(root / "one").lent("cases", b"history"), held_folder(root / "x.draft") as draft:
    (draft / "model").write_bytes(b"weights")
    print("held", flush=True)
    time.sleep(600)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_lent_file_is_private_and_gone_after_an_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "training" / "key")
    with pytest.raises(OSError, match="failed"), checkpoint.lent("cases", b"history") as lent:
        assert lent.read_bytes() == b"history"
        assert (mode(lent), mode(lent.parent)) == (0o600, 0o700)
        raise OSError("failed")
    assert not lent.exists()


def test_a_checkpoint_is_private_from_the_start_and_where_it_was_open_before(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for name in ("old", "new"):
        Checkpoint(tmp_path / name).keep_arrays("lists", {"rows": np.arange(3)})
        assert mode(tmp_path / name) == 0o700


def test_a_held_folder_goes_unless_it_was_renamed(tmp_path: Path) -> None:
    draft = tmp_path / "x.draft"
    draft.mkdir()
    (draft / "of-before").write_text("any")
    with held_folder(draft):
        assert mode(draft) == 0o700 and not list(draft.iterdir())
        (draft / "file").write_text("any")
    assert not draft.exists()
    with held_folder(draft):
        (draft / "file").write_text("any")
        draft.rename(tmp_path / "x")
    assert (tmp_path / "x" / "file").is_file() and not draft.exists()


def test_a_killed_training_leaves_nothing_to_the_next_one_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        lent, draft = tmp_path / "one" / "cases.lent", tmp_path / "x.draft"
        Checkpoint.under(tmp_path, "two")
        assert sweep([draft, tmp_path / "never-there"]) == []
        # The same work started twice: the second one touches nothing of the first.
        for second in (held_file(lent, b"other"), held_folder(draft)):
            with pytest.raises(BuildError, match="another process"), second:
                pytest.fail("both hold it")
        assert lent.read_bytes() == b"history" and (draft / "model").is_file()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        Checkpoint.under(tmp_path, "two")
        assert not lent.exists() and sweep([draft]) == [draft] and not draft.exists()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_a_second_lending_of_the_same_file_replaces_what_a_kill_left(tmp_path: Path) -> None:
    (tmp_path / "cases.lent").write_bytes(b"a longer history of before")
    with held_file(tmp_path / "cases.lent", b"new") as lent:
        assert lent.read_bytes() == b"new"
