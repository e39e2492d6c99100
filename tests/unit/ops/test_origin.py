"""A stranger's package of our name is refused, with its path."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.origin import ForeignPackage, check_origin, installation_root

ROOT = installation_root()


def run(code: str, *, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_our_own_packages_pass() -> None:
    check_origin()
    check_origin(ROOT)


def test_another_installation_is_not_the_expected_one(tmp_path: Path) -> None:
    with pytest.raises(ForeignPackage, match=f"`models` from {ROOT}/models.* instead of from {tmp_path}"):
        check_origin(tmp_path)


@pytest.mark.parametrize("content", [{"__init__.py": ""}, {"data.csv": ""}], ids=["package", "plain folder"])
def test_a_package_that_would_be_imported_later_is_found_now(tmp_path: Path, content: dict[str, str]) -> None:
    (tmp_path / "serve").mkdir()
    for name, text in content.items():
        (tmp_path / "serve" / name).write_text(text)
    # Ours is loaded first and then a folder is put in front, as Ray does with the driver's folder.
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import models.origin as o; sys.path.remove({str(ROOT)!r});"
        f"sys.path[:] = [{str(tmp_path)!r}] + [p for p in sys.path if p]; o.check_origin(packages=['serve'])"
    )
    done = run(code, folder=tmp_path.parent)
    if "__init__.py" in content:
        assert done.returncode == 1
        assert f"`serve` from {tmp_path / 'serve'}" in done.stderr
    else:
        # Python prefers a real package to a folder without __init__.py wherever it finds one; ours may still win.
        assert done.returncode == 0 or f"`serve` from {tmp_path / 'serve'}" in done.stderr


def test_a_package_that_is_imported_already_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    (tmp_path / "serve" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import serve; sys.path[0] = {str(ROOT)!r};"
        "import models.origin as o; o.check_origin()"
    )
    done = run(code, folder=tmp_path.parent)
    assert done.returncode == 1
    assert f"`serve` from {tmp_path / 'serve'} instead of from {ROOT}" in done.stderr


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ForeignPackage, match="`raycommend_nowhere` from nowhere"):
        check_origin(packages=["raycommend_nowhere"])
