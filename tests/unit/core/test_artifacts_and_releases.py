"""Artifacts are what their digest says, or an error that names the file; releases are documents nobody can break."""

import json
import uuid

import numpy as np
import pytest

from models.artifacts import MANIFEST, ArtifactError, ArtifactStore
from models.bundle import load_bundle
from models.releases import KINDS, Release, ReleaseBook, new_release
from models.retrieval.settings import RetrievalSettings


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path) -> str:
    return str(tmp_path / "artifacts") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(url, cache_folder) -> ArtifactStore:
    return ArtifactStore(url, cache=cache_folder)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "a.bin").write_bytes(bytes(range(256)) * 10)
    (made / "deep" / "b.txt").write_text("über", "utf-8")
    (made / "empty").write_bytes(b"")
    return made


def test_an_artifact_comes_back_whole_with_what_its_maker_said(store, folder) -> None:
    ref = store.put("catalog", folder, {"items": 3, "note": "ü"})
    assert ref.startswith("catalog/") and len(ref.split("/")[1]) == 64
    artifact = store.get(ref)
    assert (artifact.path / "deep" / "b.txt").read_text("utf-8") == "über"
    assert (artifact.path / "a.bin").read_bytes() == (folder / "a.bin").read_bytes()
    assert (artifact.path / "empty").read_bytes() == b""
    assert dict(artifact.meta) == dict(store.meta(ref)) == {"items": 3, "note": "ü"}


def test_the_same_content_is_the_same_artifact_and_other_content_another(store, folder) -> None:
    first = store.put("catalog", folder, {"items": 3})
    assert store.put("catalog", folder, {"items": 3}) == first and store.list("catalog") == [first]
    (folder / "a.bin").write_bytes(b"other")
    second = store.put("catalog", folder, {"items": 3})
    assert second != first and store.list("catalog") == sorted([first, second])
    assert store.get(first).path != store.get(second).path


def test_an_unknown_artifact_or_kind_is_told_apart_from_a_damaged_one(store) -> None:
    assert store.list("catalog") == []
    with pytest.raises(ArtifactError, match="manifest missing"):
        store.get("catalog/" + "0" * 64)


def _damage(kind: str, file) -> str:
    if kind == "missing":
        file.unlink()
        return "missing"
    raw = bytearray(file.read_bytes())
    if kind == "truncated":
        file.write_bytes(raw[:-1])
    else:
        raw[100] ^= 1
        file.write_bytes(raw)
    return "truncated or damaged"


@pytest.mark.parametrize("kind", ["missing", "truncated", "bit flipped"])
def test_a_damaged_file_of_the_original_is_named(tmp_path, folder, kind: str) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    words = _damage(kind, store.get(ref).path / "a.bin")
    with pytest.raises(ArtifactError, match=f"a.bin.*{words}"):
        store.get(ref)


@pytest.mark.parametrize("kind", ["missing", "truncated", "bit flipped"])
def test_a_damaged_copy_on_a_node_is_pulled_again(tmp_path, folder, kind: str) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    _damage(kind, store.get(ref).path / "a.bin")
    assert (store.get(ref).path / "a.bin").read_bytes() == (folder / "a.bin").read_bytes()


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_a_remote_original_that_is_not_whole_is_an_artifact_error_and_leaves_no_copy(tmp_path, folder, change) -> None:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}"
    store = ArtifactStore(url, cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    files = fsspec.filesystem("memory")
    place = f"/{url.removeprefix('memory://')}/main/{ref}/a.bin"
    files.rm(place)
    if change == "damaged":
        files.pipe_file(place, b"something else")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"a\.bin"):
            store.get(ref)
    leftovers = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert change == "damaged" or not leftovers


def test_a_changed_manifest_does_not_pass_for_its_digest(tmp_path, folder) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    manifest = store.get(ref).path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"a.bin"', '"../../a.bin"'))
    with pytest.raises(ArtifactError, match="does not match its digest"):
        store.get(ref)


def test_an_artifact_whose_manifest_was_never_written_does_not_exist(tmp_path, folder) -> None:
    store = ArtifactStore(str(tmp_path / "artifacts"), cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    (tmp_path / "artifacts" / "main" / ref / MANIFEST).unlink()
    assert store.list("catalog") == []
    assert store.put("catalog", folder, {}) == ref and store.get(ref)


def test_a_node_reads_from_its_copy_when_the_files_are_gone_but_not_without_the_manifest(tmp_path, folder) -> None:
    import fsspec

    url = f"memory://{uuid.uuid4().hex}"
    store = ArtifactStore(url, cache=tmp_path / "cache")
    ref = store.put("catalog", folder, {})
    store.get(ref)
    place = f"/{url.removeprefix('memory://')}/main/{ref}"
    fsspec.filesystem("memory").rm(f"{place}/a.bin")
    assert store.get(ref)


def test_tenants_do_not_see_each_other_s_artifacts(url, cache_folder, folder) -> None:
    ref = ArtifactStore(url, cache=cache_folder, tenant="a").put("catalog", folder, {})
    other = ArtifactStore(url, cache=cache_folder, tenant="b")
    assert other.list("catalog") == []
    with pytest.raises(ArtifactError):
        other.get(ref)
    with pytest.raises(ArtifactError, match="valid id"):
        ArtifactStore(url, cache=cache_folder, tenant="../a")


def test_small_documents_are_replaced_whole(store) -> None:
    assert store.read_text("releases/latest") is None
    store.write_text("releases/latest", "one")
    store.write_text("releases/latest", "two ü")
    assert store.read_text("releases/latest") == "two ü"


REFS = {kind: f"{kind}/{'0' * 64}" for kind in KINDS}


def test_a_release_survives_its_document_and_is_named_by_its_content() -> None:
    release = new_release(REFS, parent="r-0", dataset="tiny", metrics={"ndcg": 0.5})
    again = Release.from_json(release.to_json())
    assert again == release and again.release_id == release.release_id
    later = new_release(REFS, parent="r-1")
    assert later.release_id == release.release_id
    assert new_release({**REFS, "ranker": "ranker/" + "1" * 64}).release_id != release.release_id


def test_a_release_may_lack_a_ranker_and_nothing_else() -> None:
    without = {k: v for k, v in REFS.items() if k != "ranker"}
    assert Release.from_json(new_release(without).to_json()).artifacts == without
    for kind in set(KINDS) - {"ranker"}:
        with pytest.raises(ValueError, match=kind):
            Release.from_json(new_release({k: v for k, v in REFS.items() if k != kind}).to_json())


WHOLE = json.loads(new_release(REFS).to_json())
GARBAGE = {
    "nothing": "",
    "no JSON": "{",
    "bytes": b"\xff\xfe\x00",
    "null": "null",
    "a number": "5",
    "a list": "[]",
    "a string": '"catalog"',
    "an empty object": "{}",
    "artifacts a list": json.dumps({**WHOLE, "artifacts": list(KINDS)}),
    "artifacts a number": json.dumps({**WHOLE, "artifacts": 1}),
    "references that are numbers": json.dumps({**WHOLE, "artifacts": dict.fromkeys(KINDS, 1)}),
    "references without a kind": json.dumps({**WHOLE, "artifacts": dict.fromkeys(KINDS, "x")}),
    "no position": json.dumps({k: v for k, v in WHOLE.items() if k != "item_log_seq"}),
    "a position that is text": json.dumps({**WHOLE, "item_log_seq": "soon"}),
    "no notes": json.dumps({k: v for k, v in WHOLE.items() if k != "notes"}),
    "very deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_release_is_a_value_error(text) -> None:
    with pytest.raises(ValueError, match="release"):
        Release.from_json(text)


def test_the_book_remembers_the_latest_release(store) -> None:
    book = ReleaseBook(store)
    assert book.latest() is None
    first, second = new_release(REFS), new_release({**REFS, "ranker": "ranker/" + "1" * 64})
    for release in (first, second, first):
        book.save(release)
        assert book.latest() == release


def test_a_bundle_maps_a_release_and_refuses_parts_that_do_not_fit(tiny, tmp_path) -> None:
    from dataclasses import replace

    from models.bundle import EMBEDDINGS_FILE

    bundle = load_bundle(tiny.artifacts, tiny.release, settings=RetrievalSettings())
    assert isinstance(bundle.embeddings, np.memmap) and bundle.embeddings.shape == (40, 32)
    assert sorted(bundle.popularity_rank.tolist()) == list(range(40))
    assert bundle.ranker.score_kind == "rank_only"
    np.save(tmp_path / EMBEDDINGS_FILE, np.zeros((39, 32), np.float32))
    wrong = {**tiny.release.artifacts, "embeddings": tiny.artifacts.put("embeddings", tmp_path, {})}
    with pytest.raises(ArtifactError, match=r"embeddings/.*40 items"):
        load_bundle(tiny.artifacts, replace(tiny.release, artifacts=wrong), settings=RetrievalSettings())


def test_pickled_arrays_are_refused(tiny, tmp_path) -> None:
    from dataclasses import replace

    from models.bundle import EMBEDDINGS_FILE

    np.save(tmp_path / EMBEDDINGS_FILE, np.array([{"a": 1}] * 40, dtype=object), allow_pickle=True)
    wrong = {**tiny.release.artifacts, "embeddings": tiny.artifacts.put("embeddings", tmp_path, {})}
    with pytest.raises(ValueError, match="Python objects"):
        load_bundle(tiny.artifacts, replace(tiny.release, artifacts=wrong), settings=RetrievalSettings())
