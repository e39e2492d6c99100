"""Incremental work and resume with a transformer, whose vectors depend on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.catalog import Item, document_of
from models.encoder import SentenceTransformerEncoder

WORDS = ("film", "about", "and", "anew", "drama", "genre", "river", "stone", "train", "storm", "winter", ".", ":", ",")


class Dying:
    """The product's encoder, killed before the block number `dies_at`."""

    def __init__(self, encoder: SentenceTransformerEncoder, dies_at: int | None = None) -> None:
        self._encoder, self._dies_at = encoder, dies_at
        self.dimension, self.calls, self.texts = encoder.dimension, 0, 0

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.calls == self._dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.texts += len(texts)
        return self._encoder.encode(texts)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_bert) -> SentenceTransformerEncoder:
    words = [*WORDS, *"0123456789", *(f"##{digit}" for digit in range(10))]
    folder: Path = tiny_bert(tmp_path_factory.mktemp("bert"), words, initializer_range=0.5)
    return SentenceTransformerEncoder(folder, max_tokens=32, batch_size=32, device="cpu")


@pytest.fixture
def items() -> list[Item]:
    """Texts of very different lengths, so that a text is padded by others of its batch."""
    rng = np.random.default_rng(0)
    said = [" ".join(rng.choice(WORDS[5:11], int(length))) for length in rng.integers(0, 20, 2200)]
    return [Item(f"i{n}", f"Film {n}", text, {"genre": ("Drama",)}) for n, text in enumerate(said)]


def test_what_is_embedded_with_other_company_points_the_same_way_as_in_a_full_run(job, items, changed, encoder) -> None:
    first = job.embed(job.catalog(items), encoder=Dying(encoder))
    later = changed(items, 20)
    catalog = job.catalog(later)
    some, every = Dying(encoder), Dying(encoder)
    incremental = job.vectors(job.embed(catalog, encoder=some, previous=first))
    full = job.vectors(job.embed(catalog, encoder=every, previous=first, full=True))
    assert (some.texts, every.texts) == (110, 2200)
    assert (incremental * full).sum(axis=1).min() >= 1 - 1e-5
    # Each row is of its own text: of what changed the vectors before are no longer near enough, nor is any neighbour's.
    assert (job.vectors(first) * full).sum(axis=1)[::20].max() < 1 - 1e-5
    assert (full * np.roll(full, 1, axis=0)).sum(axis=1).max() < 1 - 1e-5
    alone = np.concatenate([encoder.encode([document_of(item)]) for item in later[:40]])
    assert (alone * full[:40]).sum(axis=1).min() >= 1 - 1e-5


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_job_that_was_killed_at_a_block_ends_with_the_same_bits(job, items, tmp_path, encoder, dies_at: int) -> None:
    catalog = job.catalog(items)
    with pytest.raises(KeyboardInterrupt):
        job.embed(catalog, encoder=Dying(encoder, dies_at))
    on = Dying(encoder)
    resumed = job.embed(catalog, encoder=on)
    assert on.calls == 3 - dies_at
    undisturbed = type(job)(tmp_path / "undisturbed")
    whole = undisturbed.embed(catalog, encoder=Dying(encoder))
    assert resumed == whole
    assert np.array_equal(job.vectors(resumed), undisturbed.vectors(whole))
