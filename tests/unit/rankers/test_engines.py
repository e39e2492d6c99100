"""One contract for every engine of the text ranker that this machine can run, and the choice between them."""

import json
import threading
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from models.catalog import Item, ItemCatalog, write_catalog
from models.rankers import choice
from models.rankers.choice import fastest_exact
from models.rankers.engines import EXACT, EngineName, available, build_engine
from models.rankers.text import TextRanker

NAMES = [name for name in get_args(EngineName) if name != "auto"]
WORDS = ["film", "drama", "comedy", "thriller", "western", "red", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_text_model):
    return save_text_model(tmp_path_factory.mktemp("engines") / "text")


@pytest.fixture(scope="module")
def long_and_short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalog")
    items = [Item(f"i{n}", f"film {n}", text=" ".join(WORDS[(n + k) % 7] for k in range(n))) for n in range(60)]
    write_catalog(items, folder / "catalog.arrow")
    return ItemCatalog(folder)


@pytest.fixture(params=NAMES)
def ranker(request, folder, long_and_short):
    probe = TextRanker.load(folder, long_and_short, device="cpu", engine="transformers")
    if request.param not in available(probe.engine._model, device="cpu"):
        pytest.skip(f"the {request.param} engine is not to be had here: pip install 'raycommend[engines]'")
    return TextRanker.load(folder, long_and_short, device="cpu", engine=request.param, cached_profiles=0)


def test_a_score_is_the_same_alone_and_in_any_batch(ranker, make_query, make_candidates):
    candidates = make_candidates(range(60))
    together = ranker.score(make_query(), candidates)
    alone = np.concatenate([ranker.score(make_query(), candidates.take(np.array([at]))) for at in range(60)])
    backwards = ranker.score(make_query(), candidates.take(np.arange(60)[::-1]))[::-1]
    shuffled = np.random.default_rng(0).permutation(60)
    halves = np.concatenate([ranker.score(make_query(), candidates.take(part)) for part in np.split(shuffled, 4)])
    assert together.std() > 0.01
    for other in (alone, backwards, halves[np.argsort(shuffled)]):
        assert np.abs(together - other).max() <= 1e-4
        assert np.array_equal(np.argsort(together, kind="stable"), np.argsort(other, kind="stable"))


def test_exact_engines_say_what_the_model_says_and_the_others_nearly(
    ranker, folder, long_and_short, make_query, make_candidates
):
    model = TextRanker.load(folder, long_and_short, device="cpu", engine="transformers")
    wanted = model.score(make_query(), make_candidates(range(60)))
    found = ranker.score(make_query(), make_candidates(range(60)))
    if ranker.engine.name in EXACT:
        assert np.abs(found - wanted).max() <= 1e-4
        assert np.array_equal(np.argsort(found), np.argsort(wanted))
    else:
        assert np.abs(found - wanted).max() > 0
        assert np.corrcoef(found, wanted)[0, 1] > {"bf16": 0.995, "int8": 0.95}[ranker.engine.name]


def test_threads_may_share_an_engine(ranker, make_query, make_candidates):
    asked = [make_candidates(range(n, n + 20)) for n in range(8)]
    wanted = [ranker.score(make_query(), one) for one in asked]
    found: dict[int, np.ndarray] = {}

    def ask(at: int) -> None:
        for _ in range(5):
            found[at] = ranker.score(make_query(), asked[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, scores in enumerate(wanted):
        assert np.abs(found[at] - scores).max() <= 1e-4


@pytest.fixture(scope="module")
def roberta():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=1,
        max_position_embeddings=66,
        type_vocab_size=1,
        initializer_range=0.5,
    )
    return RobertaForSequenceClassification(config).eval()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_models_other_than_bert_are_exported_too(roberta, name):
    if name not in available(roberta, device="cpu"):
        pytest.skip(f"the {name} engine is not to be had here: pip install 'raycommend[engines]'")
    tokens = np.random.default_rng(0).integers(4, 50, (5, 23))
    mask = np.ones_like(tokens)
    tokens[1, 9:], mask[1, 9:] = 1, 0
    wanted = build_engine("transformers", roberta, "cpu", list).logits(tokens, None, mask)
    assert wanted.std() > 0.01
    assert np.abs(build_engine(name, roberta, "cpu", list).logits(tokens, None, mask) - wanted).max() <= 1e-4


def test_a_model_that_is_no_bert_gets_no_engine_made_for_bert(roberta):
    assert not {"packed", "bf16", "int8"} & set(available(roberta, device="cpu"))
    assert fastest_exact(roberta, "cpu", list, identity="r", kept=None).name in EXACT


@pytest.fixture
def model(folder, long_and_short):
    return TextRanker.load(folder, long_and_short, device="cpu", engine="transformers").engine._model


def test_the_fastest_exact_engine_is_measured_once_and_kept(model, tmp_path, monkeypatch):
    first = fastest_exact(model, "cpu", list, identity="m", kept=tmp_path / "choices")
    [file] = (tmp_path / "choices").iterdir()
    kept = json.loads(file.read_text())
    assert kept["engine"] == first.name == min(kept["seconds"], key=kept["seconds"].get)
    assert set(kept["seconds"]) == set(available(model, device="cpu")) & set(EXACT)
    monkeypatch.setattr(choice, "_measured", None)  # whoever measures again fails
    assert fastest_exact(model, "cpu", list, identity="m", kept=tmp_path / "choices").name == first.name


@pytest.fixture
def two(monkeypatch):
    """Only two engines to choose from: building all of them takes seconds."""
    monkeypatch.setattr(choice, "EXACT", ("packed", "transformers"))


def test_what_was_kept_decides_even_against_the_clock(model, tmp_path, two):
    fastest_exact(model, "cpu", list, identity="m", kept=tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(json.dumps({"engine": "transformers"}))
    assert fastest_exact(model, "cpu", list, identity="m", kept=tmp_path).name == "transformers"


@pytest.mark.parametrize("text", ["", "{", '{"engine": "int8"}', '{"engine": "magic"}', "[]"])
def test_a_choice_that_makes_no_sense_is_measured_anew(model, tmp_path, text, two):
    fastest_exact(model, "cpu", list, identity="m", kept=tmp_path)
    [file] = tmp_path.iterdir()
    file.write_text(text)
    engine = fastest_exact(model, "cpu", list, identity="m", kept=tmp_path)
    assert engine.name in EXACT
    assert json.loads(file.read_text())["engine"] == engine.name


def test_another_model_number_of_threads_or_library_is_another_choice(model, tmp_path, two):
    def ask(identity):
        fastest_exact(model, "cpu", list, identity=identity, kept=tmp_path)

    ask("m")
    ask("n")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        ask("m")
    finally:
        torch.set_num_threads(before)
    assert len(list(tmp_path.iterdir())) == 3


def test_an_engine_that_breaks_or_says_something_else_is_passed_over(model, monkeypatch):
    class Wrong:
        name, length_multiple = "packed", 1

        def logits(self, tokens, types, mask):
            return np.zeros(len(tokens), np.float32)

    def build(name, *rest):
        if name == "packed":
            return Wrong()
        if name in ("onnx", "openvino"):
            raise RuntimeError("no such instruction")
        return build_engine(name, *rest)

    monkeypatch.setattr(choice, "build_engine", build)
    assert fastest_exact(model, "cpu", list, identity="m", kept=None).name == "transformers"


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(model, tmp_path, two):
    (tmp_path / "file").write_text("")
    assert fastest_exact(model, "cpu", list, identity="m", kept=tmp_path / "file" / "choices").name in EXACT
