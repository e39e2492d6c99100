"""The text ranker is trained from events: same inputs as serving, same bytes after a kill, no text too strange."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from models.behaviour.behaviour import BehaviourSettings
from models.behaviour.statistics import fit_statistics
from models.candidates import SCORED_SOURCES, Candidates, Source
from models.catalog import Item, ItemCatalog
from models.encoder import HashEncoder
from models.rankers.apart import divisible
from models.rankers.compressed import CompressedModel, RankerError
from models.rankers.fusion import FEATURE_NAMES
from models.rankers.inputs import POPULARITY_COLUMNS
from models.rankers.load import load_ranker
from models.rankers.network import NetworkShape, initialise
from models.rankers.profile_text import profile_text
from models.rankers.text import TextRanker
from models.rankers.text_fusion import FUSED_WITH, FusedTextRanker, TextFusion
from models.retrieval.query import RetrievalQuery
from models.retrieval.settings import RetrievalSettings
from pipelines.training.checkpoint import Checkpoint
from pipelines.training.examples import empty_lists
from pipelines.training.settings import TextTrainingSettings, TrainingSettings
from pipelines.training.split import Part
from pipelines.training.text import Origin, Sources, _cases, _split, train_text_ranker
from pipelines.training.text_cases import TextCase, negatives, with_found
from pipelines.training.text_fuse import fit_fusion
from pipelines.training.text_pairs import PairReader
from pipelines.training.text_start import load_start, reader_for
from pipelines.training.text_world import text_world

WORDS = ["film", "liked", ":", ";", ".", "red", "blue", *(f"g{n}" for n in range(5)), *(f"n{n}" for n in range(100))]
QUICK = TextTrainingSettings(
    steps=24,
    lists_per_step=4,
    max_tokens=48,
    frozen_layers=0,
    learning_rate=1e-3,
    head_learning_rate=1e-3,
    list_size=20,
    validation_cases=30,
    checkpoint_steps=5,
)
SPLIT = TrainingSettings(train_positions=4, validation_positions=2, bootstrap_rounds=200, min_examples=10)
SOURCES = Sources(RetrievalSettings(), BehaviourSettings())


@pytest.fixture
def save_start(tiny_bert):
    def save(folder, *, layers=2):
        # A wide spread: with BERT's own the model would take long to leave its even start.
        return tiny_bert(folder, WORDS, hidden=32, layers=layers, initializer_range=0.2)

    return save


@pytest.fixture
def catalog():
    items = [Item(f"i{k}", f"film g{k % 5} n{k}", labels={"genre": (f"g{k % 5}",)}) for k in range(100)]
    return ItemCatalog.of(items)


@pytest.fixture
def embeddings(catalog):
    return HashEncoder(16).encode([catalog.document(r) for r in range(len(catalog))])


def trained(folder, start, log, catalog, embeddings, *, origin=None, settings=QUICK, **named):
    folder.mkdir()
    options = {"settings": settings, "training": SPLIT, "sources": SOURCES, **named}
    return train_text_ranker(log, catalog, embeddings, folder, origin or Origin(start), **options)


def test_training_learns_and_what_it_wrote_is_served_with_the_scores_it_had(
    tmp_path, catalog, embeddings, make_log, save_start
):
    # Everybody takes items of two of the five genres: what was taken can be told by one word of its text.
    rng, liked = np.random.default_rng(5), np.flatnonzero(np.arange(100) % 5 < 2)
    log = make_log(
        [(f"u{u}", f"i{item}", 24 * u + n) for u in range(160) for n, item in enumerate(rng.permutation(liked)[:14])]
    )
    longer = QUICK.model_copy(update={"steps": 80, "lists_per_step": 8, "hard_negatives": 2, "random_negatives": 3})
    metrics = trained(tmp_path / "ranker", save_start(tmp_path / "start"), log, catalog, embeddings, settings=longer)
    assert metrics["last_loss"] < metrics["first_loss"] - 0.01
    assert metrics["text_ndcg10"] > 0
    assert metrics == json.loads((tmp_path / "ranker" / "metrics.json").read_text())
    assert {"text_vs_retrieval", "fused_vs_retrieval", "training_s", "calibration_error"} <= set(metrics)
    # The same weights without the text say what reading brought.
    assert metrics["without_text"]["text"] == 0 and set(metrics["without_text"]["weights"]) == set(FUSED_WITH)
    gap = metrics["fused_vs_without_text"]
    assert gap["lower"] <= gap["mean"] <= gap["upper"]
    ranker = load_ranker(tmp_path / "ranker", catalog, embeddings, fit_statistics(log, catalog), device="cpu")
    assert isinstance(ranker, FusedTextRanker) and isinstance(ranker.text, TextRanker)
    query = RetrievalQuery(n=5, now_ms=10**13, seed_items=("i1", "i6", "i11"))
    rows = np.array([16, 2, 99, 0], np.int32)
    candidates = given(rows)
    # The very inputs of training give the logits that serving gives.
    model, tokenizer = load_start(tmp_path / "ranker", QUICK, seed=0)
    reader = PairReader(tokenizer, catalog, max_tokens=QUICK.max_tokens)
    inputs = {n: torch.from_numpy(a) for n, a in reader.padded(reader.read(query, rows)).items()}
    with torch.inference_mode():
        wanted = model.eval()(**inputs).logits[:, 0].numpy()
    np.testing.assert_allclose(ranker.text.score(query, candidates), wanted, atol=1e-4)
    from sentence_transformers import CrossEncoder

    words = profile_text(query, catalog)
    library = CrossEncoder(str(tmp_path / "ranker"), max_length=QUICK.max_tokens, device="cpu", local_files_only=True)
    pairs = [(words, catalog.document(int(row))) for row in rows]
    theirs = library.predict(pairs, show_progress_bar=False, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(theirs, wanted, atol=1e-4)
    scores = ranker.score(query, candidates)
    one = [float(ranker.text.score(query, candidates.take(np.array([at])))[0]) for at in range(4)]
    np.testing.assert_allclose(one, wanted, atol=1e-4)
    assert scores.shape == (4,) and np.isfinite(scores).all()
    assert len(ranker.score(query, candidates.take(np.arange(0)))) == 0
    # In parts, as the ranker's queue computes it, and over items of another release.
    task = divisible(ranker).take_apart(query, candidates)
    while task.left:
        ranker.advance([task], tokens=1)
    np.testing.assert_allclose(task.scores(), scores, atol=1e-5)
    grown = ranker.over(catalog, embeddings, fit_statistics(log, catalog))
    assert grown.text.engine is ranker.text.engine
    np.testing.assert_allclose(grown.score(query, candidates), scores, atol=1e-5)


def test_it_learns_from_lists_that_hold_what_was_taken_and_never_from_what_judges_it(
    catalog, embeddings, make_taste_log
):
    log = make_taste_log(60)
    split = _split(log, Origin(None), SPLIT, 0)
    train, judge, decide = _cases(split, text_world(split, catalog, embeddings, SOURCES), QUICK, SPLIT, 0)
    assert train and all(case.candidates.rows[case.place] == case.taken for case in train)
    assert all((case.candidates.sources == Source.semantic).all() for case in train)
    first = {e.user: e.history.timestamps_ms[e.position] for e in reversed(split.of(Part.validate))}
    assert all(case.query.now_ms <= first[case.user] for case in train if case.user in first)
    # A teacher also tells of lists that miss what was taken; they fill up what steps are left.
    world, short = (
        text_world(split, catalog, embeddings, SOURCES),
        QUICK.model_copy(update={"similar": 10, "steps": 500}),
    )
    held, taught = (_cases(split, world, short, SPLIT, 0, taught=by_a_teacher)[0] for by_a_teacher in (False, True))
    assert [(c.user, c.query.now_ms) for c in taught[: len(held)]] == [(c.user, c.query.now_ms) for c in held]
    missed = taught[len(held) :]
    assert missed and all(case.place == -1 and case.taken not in case.candidates.rows for case in missed)
    few = QUICK.model_copy(update={"similar": 10, "steps": len(held) // QUICK.lists_per_step + 2})
    assert len(_cases(split, world, few, SPLIT, 0, taught=True)[0]) == few.steps * few.lists_per_step
    # Events that fit the sources teach too, unless the model learned from them before.
    moment = int(np.quantile(log.timestamps_ms, 0.8))
    later = _split(log, Origin(None, since_ms=moment), SPLIT, 0)
    assert min(e.history.timestamps_ms[e.position] for e in later.examples) > moment
    both = _split(log, Origin(None, sources_until_ms=moment), SPLIT, 0)
    assert both.fit.timestamps_ms.max() <= moment and len(both.examples) > len(later.examples)
    assert {case.user % 2 for case in judge} == {0} and {case.user % 2 for case in decide} == {1}


def given(rows):
    n = len(rows)
    return Candidates(
        rows,
        np.ones(n, np.uint16),
        np.ones((n, len(SCORED_SOURCES)), np.float32),
        np.linspace(1, 0, n, dtype=np.float32),
    )


class Killed(BaseException):
    pass


def test_an_interrupted_training_ends_with_the_bytes_of_one_in_a_single_run(
    tmp_path, catalog, embeddings, make_taste_log, save_start
):
    log, start = make_taste_log(80), save_start(tmp_path / "start")
    trained(tmp_path / "whole", start, log, catalog, embeddings)

    def dying(step, share):
        if step.startswith("step 20"):
            raise Killed

    kept = Checkpoint(tmp_path / "kept")
    with pytest.raises(Killed):
        trained(tmp_path / "cut", start, log, catalog, embeddings, checkpoint=kept, progress=dying)
    metrics = trained(tmp_path / "on", start, log, catalog, embeddings, checkpoint=kept)
    assert metrics["steps"] == 24 and len(kept.state("text")["losses"]) == 24
    whole, resumed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "on"))
    assert whole == resumed
    assert (tmp_path / "whole" / "ranker.json").read_text() == (tmp_path / "on" / "ranker.json").read_text()
    trained(tmp_path / "other", start, log, catalog, embeddings, seed=1)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != whole


def test_frozen_layers_stay_as_they_are(tmp_path, catalog, embeddings, make_taste_log, save_start):
    log, start = make_taste_log(80), save_start(tmp_path / "start", layers=4)
    frozen = QUICK.model_copy(update={"frozen_layers": 2, "steps": 8})
    trained(tmp_path / "teacher", start, log, catalog, embeddings, settings=frozen)
    before, _ = load_start(start, QUICK, seed=0)
    after, _ = load_start(tmp_path / "teacher", QUICK, seed=0)
    moved = {n: not torch.equal(p, dict(after.named_parameters())[n]) for n, p in before.named_parameters()}
    assert not any(changed for n, changed in moved.items() if "embeddings" in n or "layer.0." in n or "layer.1." in n)
    assert moved["bert.encoder.layer.3.output.dense.weight"] and moved["classifier.weight"]


def test_a_student_keeps_fewer_layers_and_learns_its_teacher_s_scores(
    tmp_path, catalog, embeddings, make_taste_log, save_start
):
    log, teacher = make_taste_log(160), save_start(tmp_path / "teacher", layers=4)
    strict = BertForSequenceClassification.from_pretrained(teacher)
    with torch.no_grad():
        strict.classifier.weight.mul_(10)  # an opinionated teacher
    strict.save_pretrained(teacher)
    small = QUICK.model_copy(
        update={"layers": 2, "steps": 100, "lists_per_step": 6, "distil_weight": 1.0, "learning_rate": 3e-3}
    )
    metrics = trained(
        tmp_path / "student", teacher, log, catalog, embeddings, origin=Origin(teacher, teacher=teacher), settings=small
    )
    assert metrics["layers"] == 2
    # Its targets are the teacher's scores alone, so a falling loss is learning from the teacher.
    assert metrics["last_loss"] < metrics["first_loss"] - 0.05


STRANGE = ["", " ", "x" * 50_000, "🎬🎉 film", "فيلم قديم", "老电影 好看", "a\u202eb\u200f", "n1 " * 20_000]


def test_no_text_is_too_strange_to_train_on(tmp_path, catalog, embeddings, make_taste_log, save_start):
    log = make_taste_log(60)
    items = [Item(f"i{k}", STRANGE[k % 8][:900], STRANGE[(k + 3) % 8]) for k in range(100)]
    strange = ItemCatalog.of(items)
    metrics = trained(tmp_path / "r", save_start(tmp_path / "start"), log, strange, embeddings, settings=QUICK)
    assert np.isfinite(metrics["last_loss"])
    ranker = load_ranker(tmp_path / "r", strange, embeddings, fit_statistics(log, strange), device="cpu")
    for query in (RetrievalQuery(n=5, now_ms=10**13), RetrievalQuery(n=5, now_ms=10**13, seed_items=("i2", "nobody"))):
        assert np.isfinite(ranker.score(query, given(np.arange(100, dtype=np.int32)))).all()


def test_pairs_are_no_longer_than_the_model_reads_whatever_the_settings_say(tmp_path, save_start):
    wish = QUICK.model_copy(update={"max_tokens": 8192})
    model, tokenizer = load_start(save_start(tmp_path / "start"), wish, seed=0)
    long = ItemCatalog.of([Item("i0", "film " * 180, "blue " * 9_000)])
    reader = reader_for(model, tokenizer, long, wish)
    query, rows = RetrievalQuery(n=1, now_ms=0, seed_items=("i0",)), np.zeros(1, np.int32)
    pairs = reader.read(query, rows)
    assert 100 < len(pairs[0][0]) < model.config.max_position_embeddings
    inputs = {n: torch.from_numpy(a) for n, a in reader.padded(pairs).items()}
    with torch.inference_mode():
        wanted = model.eval()(**inputs).logits[:, 0].numpy()
    model.save_pretrained(tmp_path / "served")
    tokenizer.save_pretrained(tmp_path / "served")
    ranker = TextRanker.load(tmp_path / "served", long, max_tokens=wish.max_tokens, device="cpu")
    np.testing.assert_allclose(ranker.score(query, given(rows)), wanted, atol=1e-4)


@pytest.mark.parametrize("users", [0, 1])
def test_next_to_no_users_are_a_reason_and_not_a_crash(
    tmp_path, catalog, embeddings, make_taste_log, users, save_start
):
    log = make_taste_log(5)
    log = log.take(np.isin(log.user_ids, [f"u{n}" for n in range(users)]))
    metrics = trained(tmp_path / "r", save_start(tmp_path / "start"), log, catalog, embeddings)
    assert not metrics["switch_on"] and "min_examples" in metrics["reason"]
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["metrics.json"]


def test_what_cannot_be_started_from_is_refused_by_name(tmp_path, catalog, embeddings, make_taste_log, save_start):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(RankerError, match="nothing: not a model"):
        trained(tmp_path / "r", tmp_path / "nothing", make_taste_log(60), catalog, embeddings)
    damaged = save_start(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(RankerError, match="damaged: not a model"):
        trained(tmp_path / "d", damaged, make_taste_log(60), catalog, embeddings)
    many = QUICK.model_copy(update={"layers": 9})
    with pytest.raises(RankerError, match=r"layers = 9, but the model has 2"):
        trained(tmp_path / "s", save_start(tmp_path / "start"), make_taste_log(60), catalog, embeddings, settings=many)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_served_ranker_of_other_vectors_or_features_is_not_compared(
    tmp_path, catalog, embeddings, make_taste_log, compressed, save_start
):
    served = save_start(tmp_path / "served")
    if compressed:
        shape = NetworkShape(text_dim=8, labels=0, numbers=POPULARITY_COLUMNS, features=len(FEATURE_NAMES))
        CompressedModel(shape, initialise(shape, seed=0), (), ()).save(served)
    else:
        fusion = {"text": 1.0, "weights": {"gone": 1.0}, "calibration": None}
        (served / "ranker.json").write_text(json.dumps({"backend": "text", "fusion": fusion}))
    log = make_taste_log(120)
    few = QUICK.model_copy(update={"steps": 4})
    start = save_start(tmp_path / "start")
    metrics = trained(tmp_path / "ranker", start, log, catalog, embeddings, settings=few, incumbent=served)
    assert metrics["steps"] == 4 and "fused_vs_retrieval" in metrics and "fused_vs_incumbent" not in metrics


def test_the_fusion_starts_at_retrieval_order_and_finds_what_the_text_knows():
    rng = np.random.default_rng(0)
    lists = empty_lists(60, 10)
    lists.rows[:] = np.arange(10)
    lists.features[:, :, FEATURE_NAMES.index("merged_z")] = rng.normal(size=(60, 10))
    lists.target[:] = rng.integers(0, 10, 60)
    text = rng.normal(size=(60, 10)).astype(np.float32)
    text[np.arange(60), lists.target] += 3
    fusion = fit_fusion(text, lists, np.ones(60, np.int64))
    assert set(fusion.weights) == set(FUSED_WITH) and fusion.text > 0.3
    assert fusion.calibration is not None
    assert TextFusion.of(json.loads(json.dumps(fusion.to_json()))) == fusion
    nothing = fit_fusion(text, replace(lists, target=np.full(60, -1, np.int32)), np.ones(60, np.int64))
    assert nothing.text == 0 and nothing.weights["merged_z"] > 0 and nothing.calibration is None


@pytest.mark.parametrize(
    "body",
    [
        {"text": 1, "weights": {"no_such_feature": 1}, "calibration": None},
        {"text": float("nan"), "weights": {}, "calibration": None},
        {"weights": {}},
        [],
    ],
)
def test_a_fusion_that_cannot_be_read_is_refused(body):
    with pytest.raises(RankerError, match=r"ranker\.json"):
        TextFusion.of(body)


def test_negatives_are_never_what_was_taken_and_missed_cases_come_along():
    rng = np.random.default_rng(0)
    query = RetrievalQuery(n=5, now_ms=1)
    case = TextCase(0, query, given(np.array([3, 4, 5], np.int32)), 4, 1)
    for _ in range(50):
        rows = negatives(case, 8, 2, 3, rng).tolist()
        assert 4 not in rows and len(set(rows)) == 5 and {3, 5} <= set(rows)
    assert len(negatives(case, 3, 2, 3, rng)) == 2
    cases = [replace(case, place=at % 3 - 1, user=at) for at in range(90)]
    kept = with_found(iter(cases), 10)
    assert sum(c.place >= 0 for c in kept) == 10 and len(kept) == 15
