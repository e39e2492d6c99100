"""A catalog of a few thousand short texts as an artifact, an encoder that counts, and an embedder over both."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.artifacts import Artifact, ArtifactStore
from models.bundle import EMBEDDINGS_FILE
from models.catalog import CATALOG_FILE, Item, write_catalog
from models.encoder import HashEncoder
from pipelines.embedding.assemble import Embedder
from pipelines.embedding.blocks import EncoderSpec
from pipelines.embedding.runners import InlineRunner

SPEC = EncoderSpec("hash")


class CountingEncoder(HashEncoder):
    """Counts texts; dies before the block number `dies_at`, as a killed process would."""

    def __init__(self, dimension: int = 16, *, dies_at: int | None = None) -> None:
        super().__init__(dimension)
        self.texts, self.calls, self.dies_at = 0, 0, dies_at

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.dies_at is not None and self.calls >= self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.texts += len(texts)
        return super().encode(texts)


def items_of(count: int) -> list[Item]:
    return [Item(f"i{n}", f"Film {n}", f"about {n % 7} and {n % 11}", {"genre": ("Drama",)}) for n in range(count)]


@dataclass
class Job:
    """Embeds catalogs into one artifact store."""

    folder: Path
    artifacts: ArtifactStore = field(init=False)

    def __post_init__(self) -> None:
        self.artifacts = ArtifactStore(str(self.folder / "artifacts"), cache=self.folder / "cache")

    def catalog(self, items: Sequence[Item]) -> Artifact:
        with tempfile.TemporaryDirectory() as folder:
            write_catalog(list(items), Path(folder) / CATALOG_FILE)
            return self.artifacts.get(self.artifacts.put("catalog", Path(folder), {}))

    def embed(
        self,
        catalog: Artifact,
        *,
        encoder: HashEncoder | None = None,
        previous: str | None = None,
        runner: object = None,
        spec: EncoderSpec = SPEC,
        forget: bool = True,
        full: bool = False,
    ) -> str:
        chosen = runner or InlineRunner(lambda: encoder or CountingEncoder())
        embedder = Embedder(self.artifacts, spec, chosen, previous, full)  # type: ignore[arg-type]
        with tempfile.TemporaryDirectory() as folder:
            meta = embedder.embed(catalog, Path(folder))
            ref = self.artifacts.put("embeddings", Path(folder), meta)
        if forget:
            embedder.forget(catalog)
        return ref

    def vectors(self, ref: str) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = np.load(self.artifacts.get(ref).path / EMBEDDINGS_FILE, allow_pickle=False)
        return found

    def blocks(self) -> list[Path]:
        return sorted((self.folder / "artifacts" / "main" / "embedding-blocks").glob("*"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


@pytest.fixture
def items() -> list[Item]:
    return items_of(3000)


@pytest.fixture
def changed() -> Callable[[Sequence[Item], int], list[Item]]:
    """Return the items with every n-th text changed in place."""

    def change(items: Sequence[Item], every: int) -> list[Item]:
        return [replace(item, text=item.text + " anew") if n % every == 0 else item for n, item in enumerate(items)]

    return change


@pytest.fixture
def counting() -> type[CountingEncoder]:
    return CountingEncoder


@pytest.fixture
def spec() -> EncoderSpec:
    return SPEC
