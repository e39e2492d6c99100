"""Real pip against a folder of wheels made here: no network, nothing mocked."""

import hashlib
import http.server
import os
import shutil
import stat
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.hub import HubError, resolve, wheels
from models.hub.entries import tree_digest

FILES = {"demo_models/model/config.json": b"{}", "demo_models/model/sub/weights.bin": b"w" * 5000}
WHEEL = "demo_models-1.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def file_uri(digest: str = sha256(b"{}"), path: str = "demo_models/model/config.json") -> str:
    return f"pypi://demo-models==1.0/{path}#sha256={digest}"


FOLDER_URI = file_uri(
    tree_digest({"config.json": sha256(b"{}"), "sub/weights.bin": sha256(b"w" * 5000)}), "demo_models/model"
)


def make_wheel(folder: Path, extra: dict[str | zipfile.ZipInfo, bytes] | None = None) -> Path:
    info = "demo_models-1.0.dist-info"
    members: dict[str | zipfile.ZipInfo, bytes] = {
        **FILES,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: demo-models\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        **(extra or {}),
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / WHEEL


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    make_wheel(folder)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def rests(cache: Path) -> list[str]:
    """What a failed call left in the cache, lock files aside."""
    return [p.name for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_a_file_is_taken_out_of_a_wheel_and_verified(index: Path, tmp_path: Path) -> None:
    found = resolve(file_uri(), cache=tmp_path / "cache")
    assert found.name == "config.json" and found.read_bytes() == b"{}"


def test_a_folder_is_taken_out_of_a_wheel_and_verified_by_its_tree_digest(index: Path, tmp_path: Path) -> None:
    found = resolve(FOLDER_URI, cache=tmp_path / "cache")
    assert (found / "sub" / "weights.bin").read_bytes() == b"w" * 5000


def test_progress_is_told_of_extracted_bytes(index: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    resolve(FOLDER_URI, cache=tmp_path / "cache", progress=lambda *args: told.append(args))
    assert told[-1] == ("extract demo_models/model", 5002, 5002)


def test_what_is_cached_needs_neither_index_nor_network(index: Path, tmp_path: Path) -> None:
    resolve(FOLDER_URI, cache=tmp_path / "cache")
    (index / WHEEL).unlink()
    assert resolve(FOLDER_URI, cache=tmp_path / "cache", offline=True).is_dir()


def test_what_is_not_cached_says_so_offline(index: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="offline; run once without offline mode"):
        resolve(FOLDER_URI, cache=tmp_path / "cache", offline=True)


def test_a_wrong_hash_is_refused_and_nothing_is_kept_under_it(index: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=f"config.json has sha256 {sha256(b'{}')}, the URI says ffff"):
        resolve(file_uri("f" * 64), cache=tmp_path / "cache")
    assert rests(tmp_path / "cache") == [WHEEL]


def test_a_path_that_is_not_in_the_wheel_names_near_matches(index: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"not in the wheel; near matches: .*demo_models/model"):
        resolve(file_uri(path="demo_models/modell"), cache=tmp_path / "cache")


def test_bytes_are_counted_while_pip_removes_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gone", "kept"):
        (tmp_path / "tmp" / name).mkdir(parents=True)
        (tmp_path / "tmp" / name / "part").write_bytes(b"12345")
    look = os.scandir

    def late(path: Any) -> Any:
        if not isinstance(path, int) and Path(path).name == "gone":  # `rmtree` looks at open folders, by number
            shutil.rmtree(path)
        return look(path)

    monkeypatch.setattr(os, "scandir", late)
    assert wheels._bytes_below(tmp_path) == 5


def test_an_unknown_version_shows_what_pip_said(index: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"pip could not download a wheel: ERROR: .*demo-models==9"):
        resolve(FOLDER_URI.replace("==1.0", "==9"), cache=tmp_path / "cache")
    assert rests(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["truncated", "deleted", "changed"])
def test_a_damaged_cache_is_noticed_and_made_again_even_offline(index: Path, tmp_path: Path, damage: str) -> None:
    found = resolve(FOLDER_URI, cache=tmp_path / "cache")
    weights = found / "sub" / "weights.bin"
    if damage == "deleted":
        weights.unlink()
    else:
        weights.write_bytes(b"w" * 10 if damage == "truncated" else b"v" * 5000)
    again = resolve(FOLDER_URI, cache=tmp_path / "cache", offline=True)
    assert (again / "sub" / "weights.bin").read_bytes() == b"w" * 5000


def test_a_damaged_cached_wheel_is_downloaded_again(index: Path, tmp_path: Path) -> None:
    resolve(FOLDER_URI, cache=tmp_path / "cache")
    kept = next((tmp_path / "cache").rglob("*.whl"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert resolve(file_uri(), cache=tmp_path / "cache").read_bytes() == b"{}"


def test_members_that_would_leave_their_folder_are_refused(index: Path, tmp_path: Path) -> None:
    link = zipfile.ZipInfo("demo_models/model/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for extra in ({"demo_models/model/../../../escaped": b"x"}, {link: b"/etc/passwd"}):
        make_wheel(tmp_path, dict(extra))
        target = tmp_path / "target"
        target.mkdir(exist_ok=True)
        uri = wheels.WheelUri("demo-models", "1.0", "demo_models/model", "0" * 64)
        with pytest.raises(HubError, match="leaves its folder"):
            wheels.extract(tmp_path / WHEEL, uri, target, progress=lambda *_: None)
        assert list(target.iterdir()) == [] and not (tmp_path / "escaped").exists()


def test_a_python_without_pip_is_told_how_to_get_it(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(wheels.sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(HubError, match="ensurepip"):
        resolve(FOLDER_URI, cache=tmp_path / "cache")


def test_two_processes_at_once_both_get_the_whole_thing(index: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from models.hub import resolve; "
        f"print(resolve({FOLDER_URI!r}, cache=Path({str(tmp_path / 'cache')!r})))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    found = {child.communicate(timeout=60)[0] for child in children}
    assert [child.returncode for child in children] == [0, 0] and len(found) == 1
    assert (Path(found.pop().decode().strip()) / "sub" / "weights.bin").stat().st_size == 5000


@pytest.fixture
def stalling_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """An index that sends half a wheel and then nothing; the event is set when it has done so."""
    content = make_wheel(tmp_path).read_bytes()
    stalled, released = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content if self.path.endswith(".whl") else f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if body is not content else "application/zip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if body is not content else body[: len(body) // 2])
            if body is content:
                self.wfile.flush()
                stalled.set()
                released.wait(30)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield stalled
    released.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.timeout(60)
def test_an_interrupted_download_leaves_nothing_half_and_ends_pip(
    stalling_index: threading.Event, tmp_path: Path
) -> None:
    def interrupt(step: str, done: int, total: int | None) -> None:
        if stalling_index.is_set():
            raise KeyboardInterrupt

    # Children of earlier tests of this run are not pip's; no new one may be left, not even unreaped.
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(KeyboardInterrupt):
        resolve(FOLDER_URI, cache=tmp_path / "cache", progress=interrupt)
    assert rests(tmp_path / "cache") == []
    assert set(psutil.Process().children(recursive=True)) <= before
