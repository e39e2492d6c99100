from pathlib import Path

import pytest

from models.hub import DEFAULT_ENCODER_URI, DEFAULT_GENERATOR_URI, MOVIELENS_100K_URI, HubError, resolve
from models.hub.uri import is_safe_member, parse_snapshot_uri, parse_wheel_uri

HASH = "#sha256=" + "0" * 64


@pytest.mark.parametrize("uri", [DEFAULT_ENCODER_URI, DEFAULT_GENERATOR_URI, MOVIELENS_100K_URI])
def test_the_default_uris_are_pinned_by_version_and_hash(uri: str) -> None:
    parsed = parse_wheel_uri(uri)
    assert parsed.version and len(parsed.sha256) == 64


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("pypi://demo/model" + HASH, "version and hash are mandatory"),
        ("pypi://demo==1/model", "version and hash are mandatory"),
        ("pypi://demo==1/model#sha256=abc", "version and hash are mandatory"),
        ("pypi://--index-url==1/model" + HASH, "version and hash are mandatory"),
        ("pypi://demo==1/../secret" + HASH, "leaves the wheel"),
        ("pypi://demo==1//etc/passwd" + HASH, "leaves the wheel"),
        ("hf://owner/name", "the revision"),
        ("hf://name@main", "the revision"),
        ("s3://bucket/model", "unknown scheme 's3'"),
        ("no/such/folder", "no such file or folder"),
        ("file:///no/such/folder", "no such file or folder"),
    ],
)
def test_a_wrong_uri_is_refused_with_a_reason(uri: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=says):
        resolve(uri, cache=tmp_path)


def test_a_local_path_is_returned_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert resolve(str(tmp_path / "model"), cache=tmp_path / "cache") == (tmp_path / "model").resolve()
    assert resolve(f"file://{tmp_path}/model", cache=tmp_path / "cache") == (tmp_path / "model").resolve()
    assert not (tmp_path / "cache").exists()


def test_a_snapshot_uri_names_repository_and_revision() -> None:
    parsed = parse_snapshot_uri("hf://BAAI/bge-base-en-v1.5@a5beb1e3")
    assert (parsed.repo, parsed.revision) == ("BAAI/bge-base-en-v1.5", "a5beb1e3")


def test_a_snapshot_that_is_not_cached_says_so_offline(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="run once without offline mode"):
        resolve("hf://owner/name@" + "0" * 40, cache=tmp_path, offline=True)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:/x", ""])
def test_member_names_that_leave_their_folder_are_unsafe(name: str) -> None:
    assert not is_safe_member(name)


def test_an_ordinary_member_name_is_safe() -> None:
    assert is_safe_member("package/model/config.json")
