"""A causal language model as text ranker: a tiny one with a tiny vocabulary, and what its prompt is made of."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, LlamaConfig, LlamaForCausalLM

from models.candidates import SCORED_SOURCES, Candidates
from models.catalog import Item, ItemCatalog, write_catalog
from models.rankers.compressed import RankerError
from models.rankers.llm import prompt_template
from models.rankers.load import load_ranker
from models.rankers.profile_text import profile_text
from models.rankers.settings import CascadeSettings
from models.rankers.text import TextRanker

WORDS = [
    "what",
    "a",
    "customer",
    "did",
    "lately",
    ":",
    "an",
    "item",
    ".",
    "will",
    "the",
    "choose",
    "this",
    "next",
    "?",
    "answer",
    "with",
    "yes",
    "or",
    "no",
    "film",
    "drama",
    "comedy",
    "thriller",
    "western",
    "liked",
    "not",
    "like",
    ";",
    "red",
    "blue",
    "user",
    "model",
    "<",
    ">",
]
CHAT = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}<model>"


def save_language_model(folder, words, *, chat=None):
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *"0123456789", *(f"##{d}" for d in range(10))]
    tokenizer = BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)})
    tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.5,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    save_language_model(tmp_path / "llm", WORDS, chat=CHAT)
    return tmp_path / "llm"


@pytest.fixture
def ranker(folder, catalog):
    return TextRanker.load(folder, catalog, device="cpu", cached_profiles=0)


def test_a_score_is_how_much_likelier_yes_is_than_no_after_the_whole_prompt(folder, ranker, make_query, catalog):
    rows = [3, 17]
    found = ranker.score(make_query(), _taken(rows))
    tokenizer = BertTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    for row, score in zip(rows, found, strict=True):
        question = (
            f"What a customer did lately:\n{profile_text(make_query(), catalog)}\n\n"
            f"An item:\n{catalog.document(row)}\n\n"
            "Will the customer choose this item next? Answer with yes or no."
        )
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            after = torch.log_softmax(model(ids).logits[0, -1].float(), dim=-1)
        yes, no = (after[tokenizer.convert_tokens_to_ids(word)] for word in ("yes", "no"))
        assert score == pytest.approx(float(yes - no), abs=1e-4)


def _taken(rows):
    n = len(rows)
    return Candidates(
        np.array(rows, np.int32),
        np.ones(n, np.uint16),
        np.zeros((n, len(SCORED_SOURCES)), np.float32),
        np.zeros(n, np.float32),
    )


def test_a_score_is_the_same_alone_and_in_any_batch(ranker, make_query, make_candidates):
    candidates = make_candidates(range(40))
    together = ranker.score(make_query(), candidates)
    alone = np.concatenate([ranker.score(make_query(), candidates.take(np.array([at]))) for at in range(40)])
    assert together.std() > 0.01
    assert np.abs(together - alone).max() <= 1e-4
    assert np.array_equal(np.argsort(together), np.argsort(alone))


def test_the_profile_changes_the_score(ranker, make_query, make_candidates):
    candidates = make_candidates(range(10))
    assert not np.allclose(ranker.score(make_query(("i2",)), candidates), ranker.score(make_query(("i7",)), candidates))


def test_any_text_and_no_text_are_scored(folder, tmp_path, make_query, make_candidates):
    texts = ["", "word " * 10_000, "🎬🔥👩‍👩‍👧", "مرحبا بالعالم", "银翼杀手", "\x00\ufffd\u202e", "\u2441 \u2442"]
    write_catalog([Item(f"i{n}", t, text=t) for n, t in enumerate(texts)], tmp_path / "catalog.arrow")
    ranker = TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu")
    assert np.isfinite(ranker.score(make_query(("i0", "i1", "i6")), make_candidates(range(len(texts))))).all()


def test_a_text_that_spells_a_special_token_does_not_become_one(folder, tmp_path, make_query):
    write_catalog([Item("i0", "film [SEP] [CLS]", text="[SEP]")], tmp_path / "catalog.arrow")
    ranker = TextRanker.load(folder, ItemCatalog(tmp_path), device="cpu")
    [(ids, _)] = ranker._tokens.of("Liked: [SEP].", [0])
    assert not {2, 3} & set(ids.tolist())


def test_without_a_chat_template_the_prompt_is_plain_text(tmp_path):
    tokenizer = save_language_model(tmp_path / "plain", WORDS)
    template = prompt_template(tokenizer)
    said = " ".join(tokenizer.convert_ids_to_tokens([*template.before, *template.between, *template.after]))
    assert said.startswith("what a customer did lately : an item :")
    assert said.endswith("answer :")


def test_a_model_without_a_word_for_yes_is_refused(tmp_path, catalog):
    save_language_model(tmp_path / "mute", [word for word in WORDS if word != "yes"], chat=CHAT)
    with pytest.raises(RankerError, match="yes"):
        TextRanker.load(tmp_path / "mute", catalog, device="cpu")


def test_a_chat_template_that_changes_what_is_said_is_refused(tmp_path, catalog):
    save_language_model(tmp_path / "odd", WORDS, chat="{{ messages[0]['content'][:9] }}")
    with pytest.raises(RankerError, match="chat template"):
        TextRanker.load(tmp_path / "odd", catalog, device="cpu")


def test_the_loader_takes_a_language_model_for_a_text_ranker(folder, catalog, embeddings, statistics):
    ranker = load_ranker(folder, catalog, embeddings, statistics, device="cpu", compute="packed")
    assert isinstance(ranker, TextRanker) and ranker.engine.name == "llm"
    assert ranker.over(catalog).engine is ranker.engine


@pytest.mark.parametrize(("most", "events", "asked"), [(None, 3, True), (0, 0, True), (2, 3, False), (3, 3, True)])
def test_a_cascade_may_be_for_users_with_few_events_only(make_query, most, events, asked):
    query = make_query(tuple(f"i{n}" for n in range(events)))
    assert CascadeSettings(candidates=5, most_events=most).asks(query) is asked
