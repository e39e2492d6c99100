import hashlib
import os
from pathlib import Path

import pytest

from models.hub.entries import Entry, tree_digest


def filled(tmp_path: Path) -> Entry:
    entry = Entry(tmp_path / "entry")
    with entry.filled() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_bytes(b"alpha")
    return entry


def test_an_entry_knows_the_hash_of_every_file(tmp_path: Path) -> None:
    assert filled(tmp_path).files() == {"sub/a": hashlib.sha256(b"alpha").hexdigest()}


def test_an_absent_entry_has_no_files(tmp_path: Path) -> None:
    assert Entry(tmp_path / "nothing").files() is None


@pytest.mark.parametrize("content", [b"alph", b"alpha!", b"ALPHA"])
def test_a_changed_file_is_noticed_whether_or_not_its_size_changed(tmp_path: Path, content: bytes) -> None:
    entry = filled(tmp_path)
    (entry.path / "sub" / "a").write_bytes(content)
    assert entry.files() is None


def test_a_missing_file_or_a_broken_receipt_is_noticed(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    (entry.path / "receipt.json").write_text("{")
    assert entry.files() is None
    entry = filled(tmp_path)
    (entry.path / "sub" / "a").unlink()
    assert entry.files() is None


def test_a_file_that_was_only_touched_is_hashed_again_and_accepted(tmp_path: Path) -> None:
    entry = filled(tmp_path)
    os.utime(entry.path / "sub" / "a", (1, 1))
    assert entry.files() is not None


def test_a_failure_while_filling_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Entry(tmp_path / "entry").filled() as folder:
        (folder / "half").write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_rests_of_a_killed_maker_are_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".new-entry-killed").mkdir()
    filled(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_the_tree_digest_is_the_documented_one() -> None:
    files = {"b": "22", "a": "11"}
    assert tree_digest(files) == hashlib.sha256(b"a\x0011\nb\x0022\n").hexdigest()
    assert tree_digest(files) != tree_digest({"b": "11", "a": "22"})
