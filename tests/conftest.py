"""What tests of several folders share: one tiny release built by the real builder, and a red-team table of texts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.artifacts import ArtifactStore
from models.bundle import ReleaseBundle, load_bundle
from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import CATALOG_FILE, Item, ItemCatalog, write_catalog
from models.encoder import HashEncoder
from models.events import EventLog, EventType
from models.explain.evidence import Evidence, build_evidence
from models.explain.positives import positives_of
from models.features import ANONYMOUS
from models.releases import Release
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.build import Builder
from pipelines.dataset import Dataset
from pipelines.settings import PipelinesSettings
from pipelines.training.settings import TextTrainingSettings
from pipelines.training.text_cases import TextCase


def pytest_configure() -> None:
    """One thread for torch, here and in what tests start, unless the environment says otherwise.

    Tests compute with tiny tensors: a second thread gains nothing, and where the cores are busy with something else
    both spin for each other (2 to 5 times the CPU seconds). What runs an engine names its number of threads.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")


GENRES = ("Drama", "Comedy", "Thriller", "Western")
NOW_MS = 1_700_000_000_000
ITEMS = 40


def make_items(count: int = ITEMS) -> list[Item]:
    return [
        Item(
            f"i{n:02}",
            f"Film {n} {GENRES[n % 4].lower()}",
            text="a tale of water" if n % 3 else "",
            labels={"genre": (GENRES[n % 4], GENRES[(n + 1) % 4])[: 1 + n % 2]},
            numbers={"year": 1950.0 + n} if n % 5 else {},
        )
        for n in range(count)
    ]


def make_log(users: int = 20, each: int = 8, items: int = ITEMS, seed: int = 3) -> EventLog:
    rng = np.random.default_rng(seed)
    rows = [(f"u{u}", f"i{i:02}") for u in range(users) for i in rng.choice(items, each, replace=False)]
    times = NOW_MS - rng.integers(1, 10**9, len(rows))
    return EventLog(
        user_ids=np.array([u for u, _ in rows], dtype=object),
        item_ids=np.array([i for _, i in rows], dtype=object),
        types=np.full(len(rows), EventType.rating, np.uint8),
        values=rng.integers(1, 6, len(rows)).astype(np.float32),
        timestamps_ms=times.astype(np.int64),
    ).sorted_by_time()


@dataclass(frozen=True)
class TinyRelease:
    """The artifacts, the release and its bundle."""

    artifacts: ArtifactStore
    release: Release
    bundle: ReleaseBundle
    dataset: Dataset

    def bundle_of(self, tenant: str, release_id: str) -> ReleaseBundle:
        return self.bundle


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRelease:
    artifacts = ArtifactStore(str(tmp_path_factory.mktemp("tiny")), cache=tmp_path_factory.mktemp("tiny-cache"))
    dataset = Dataset("tiny", make_items(), make_log())
    builder = Builder(
        artifacts,
        settings=PipelinesSettings(train_ranker=False),
        retrieval=RetrievalSettings(),
        encoder=lambda: HashEncoder(32),
        encoder_uri="hash",
    )
    release = builder.run(dataset).release
    return TinyRelease(artifacts, release, load_bundle(artifacts, release, settings=RetrievalSettings()), dataset)


@pytest.fixture(scope="session")
def items_of() -> Callable[[int], list[Item]]:
    return make_items


@pytest.fixture(scope="session")
def log_of() -> Callable[..., EventLog]:
    return make_log


def save_tiny_bert(
    folder: Path,
    words: Iterable[str],
    *,
    hidden: int = 16,
    intermediate: int | None = None,
    layers: int = 2,
    heads: int = 2,
    labels: int = 1,
    initializer_range: float = 0.02,
) -> Path:
    """Write a BERT cross-encoder and its tokenizer; its weights are random, and the same in every run.

    Args:
        folder: where to; it is made when it is not there.
        words: what the tokenizer knows beside its special tokens.
        hidden: the width of every layer, and of its inner one unless `intermediate` says otherwise.
        initializer_range: how far the weights spread. So small a model hardly tells pairs apart at BERT's own 0.02.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)}).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate or hidden,
        num_labels=labels,
        initializer_range=initializer_range,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., Path]:
    return save_tiny_bert


@dataclass(frozen=True)
class TwoWorkers:
    """A text training for two processes, wherever they run: what goes into it, and what has to come out."""

    save: Callable[..., Path]
    settings = TextTrainingSettings(
        steps=10,
        lists_per_step=4,
        max_tokens=32,
        frozen_layers=0,
        checkpoint_steps=4,
        workers=2,
        learning_rate=1e-3,
        bfloat16=False,  # half as many pairs are rounded otherwise; what is asked here is whether the sums are the same
    )
    catalog = ItemCatalog.of([Item(f"i{n}", f"film n{n}") for n in range(ITEMS)])

    def start(self, folder: Path) -> Path:
        """Write the model to start from."""
        words = ["film", "liked", "red", "blue", *(f"n{n}" for n in range(ITEMS))]
        return self.save(folder, words, initializer_range=0.2)

    def cases(self, count: int) -> list[TextCase]:
        rng = np.random.default_rng(0)
        none = np.zeros((10, len(SCORED_SOURCES)), np.float32)
        cases = []
        for user in range(count):
            rows = rng.permutation(ITEMS)[:11].astype(np.int32)
            seeds = tuple(f"i{row}" for row in rng.permutation(ITEMS)[:3])
            query = RetrievalQuery(n=10, now_ms=10**12, seed_items=seeds)
            found = Candidates(rows[:10], np.ones(10, np.uint16), none, np.zeros(10, np.float32))
            cases.append(TextCase(user, query, found, int(rows[10]), -1))
        return cases

    def assert_same_steps(self, before: dict[str, Any], model: Any, theirs: dict[str, Any]) -> None:
        """Both moved the weights the same way; single ones differ, where the sum of nothing decides what Adam does."""
        import torch

        ours = dict(model.named_parameters())
        moved = torch.cat([(ours[n].detach() - before[n]).reshape(-1) for n in ours])
        other = torch.cat([(theirs[n] - before[n]).reshape(-1) for n in ours])
        assert float(moved.norm()) > 0.01
        assert float((moved - other).norm() / moved.norm()) < 0.05


@pytest.fixture(scope="session")
def two_workers(tiny_bert: Callable[..., Path]) -> TwoWorkers:
    return TwoWorkers(tiny_bert)


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


# Titles and descriptions that strangers might write into a catalog by what they try, and what must never come out.
HOSTILE = json.loads((Path(__file__).parent / "hostile.json").read_text())


@pytest.fixture(scope="session")
def hostile() -> tuple[str, ...]:
    return tuple(text for texts in HOSTILE["texts"].values() for text in texts)


@pytest.fixture(scope="session")
def leaks() -> Callable[[str], list[str]]:
    """What of the table can be seen in a text."""
    return lambda text: [leak for leak in HOSTILE["leaks"] if leak in text.casefold()]


@pytest.fixture(scope="session")
def hostile_records(tmp_path_factory: pytest.TempPathFactory, hostile: tuple[str, ...]) -> list[tuple[str, Evidence]]:
    """Each hostile text as the candidate's title, text and genre, and as a liked item's title."""
    folder = tmp_path_factory.mktemp("catalog")
    items = [Item("fine", "Fargo", labels={"genre": ("Crime",)})]
    for at, text in enumerate(hostile):
        items.append(Item(f"title{at}", text, labels={"genre": ("Crime",)}))
        items.append(Item(f"text{at}", f"Fine {at}", text=text, labels={"genre": ("Crime", text), "brand": (text,)}))
    write_catalog(items, folder / CATALOG_FILE)
    catalog = ItemCatalog(folder)
    out = []
    for at, text in enumerate(hostile):
        liked = positives_of(ANONYMOUS, catalog, seed_rows=[0, 1 + 2 * at])
        out += [(text, build_evidence(liked, 1 + 2 * at, catalog=catalog, link=lambda a, b: 1.0))]
        out += [(text, build_evidence(liked, 2 + 2 * at, catalog=catalog, link=lambda a, b: 1.0))]
    return out
