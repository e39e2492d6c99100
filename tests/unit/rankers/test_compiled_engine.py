"""The engine for GPUs, on a CPU, with a fake in place of `torch.compile`: few shapes, the same scores, one way back."""

import logging
import threading

import numpy as np
import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from models.rankers.engines import CompiledEngine, TransformersEngine, build_engine
from models.rankers.text import TextRanker

ROWS, LENGTHS = {8, 16, 32, 64}, {32, 64, 96, 128, 130}


class FakeCompiler:
    """Stands in for `torch.compile`: runs the model as it is, notes what it was given, and fails where told."""

    def __init__(self, *, fails=None):
        self.fails = fails or (lambda shape: False)
        self.options, self.shapes, self.threads = [], [], set()
        self.go = threading.Event()
        self.go.set()

    def __call__(self, model, **options):
        self.options.append(options)

        def compiled(**given):
            assert self.go.wait(20)
            shapes = {tuple(one.shape) for one in given.values()}
            assert len(shapes) == 1
            self.shapes += shapes
            self.threads.add(threading.current_thread().name)
            if self.fails(*shapes):
                raise RuntimeError("no such kernel")
            return model(**given)

        return compiled


@pytest.fixture(scope="module")
def model():
    """A model that finds places by its padding token, in double precision, so that only real differences show."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        max_position_embeddings=132,
        type_vocab_size=2,
        initializer_range=0.3,
    )
    return RobertaForSequenceClassification(config).eval().double()


@pytest.fixture
def compiler(monkeypatch):
    fake = FakeCompiler()
    monkeypatch.setattr(torch, "compile", fake)
    return fake


def batch(rows, length, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(4, 50, (rows, length)).astype(np.int64)
    mask = (np.arange(length) < rng.integers(1, length + 1, (rows, 1))).astype(np.int64)
    mask[0] = 1
    tokens[mask == 0] = 1
    return tokens, rng.integers(0, 2, (rows, length)) * mask, mask


def settled(engine, *batches):
    for one in batches:
        engine.logits(*one)
    engine.settle()
    return [engine.logits(*one) for one in batches]


def test_the_compiled_model_sees_few_shapes_and_its_scores_are_the_eager_ones_in_order(model, compiler):
    engine, eager = CompiledEngine(model, device="cpu"), TransformersEngine(model, device="cpu")
    batches = [batch(rows, length) for rows in (1, 2, 7, 8, 9, 33, 64, 65, 150) for length in (1, 31, 32, 33, 100, 130)]
    before = [engine.logits(*one) for one in batches]
    engine.settle()
    compiler.shapes.clear()
    after = [engine.logits(*one) for one in batches]
    for one, first, then in zip(batches, before, after, strict=True):
        wanted = eager.logits(*one)
        assert first.shape == then.shape == wanted.shape and then.dtype == np.float32
        assert np.abs(then - wanted).max() <= 1e-6 and np.abs(first - wanted).max() <= 1e-6
        assert np.array_equal(np.argsort(then, kind="stable"), np.argsort(wanted, kind="stable"))
    assert np.concatenate(after).std() > 0.01
    assert len(compiler.shapes) == 6 * (7 + 2 + 3)  # 65 and 150 rows are two and three batches: all were compiled
    assert {rows for rows, _ in compiler.shapes} <= ROWS and {length for _, length in compiler.shapes} <= LENGTHS
    assert compiler.options == [{"mode": "reduce-overhead", "dynamic": False}]


@pytest.mark.parametrize("types", [True, False])
def test_a_pair_has_the_same_score_alone_and_in_any_batch(model, compiler, types):
    engine = CompiledEngine(model, device="cpu")
    tokens, kinds, mask = batch(21, 40)
    kinds = kinds if types else None
    alone = [(tokens[n : n + 1], None if kinds is None else kinds[n : n + 1], mask[n : n + 1]) for n in range(21)]
    backwards = (tokens[::-1].copy(), None if kinds is None else kinds[::-1].copy(), mask[::-1].copy())
    together, reversed_, *each = settled(engine, (tokens, kinds, mask), backwards, *alone)
    assert np.abs(np.concatenate(each) - together).max() <= 1e-6
    assert np.abs(reversed_[::-1] - together).max() <= 1e-6
    assert together.std() > 0.01


def test_no_call_waits_for_a_compilation_and_one_thread_makes_and_runs_all_graphs(model, compiler):
    engine, eager = CompiledEngine(model, device="cpu"), TransformersEngine(model, device="cpu")
    one, other = batch(8, 32), batch(8, 64)
    settled(engine, one)
    compiler.go.clear()  # the next shape hangs in the compiler
    for asked in (other, one, other):
        assert np.abs(engine.logits(*asked) - eager.logits(*asked)).max() <= 1e-6
    compiler.go.set()
    engine.settle()
    compiler.shapes.clear()
    callers = [threading.Thread(target=engine.logits, args=asked) for asked in (one, other) * 3]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(compiler.shapes) == [(8, 32)] * 3 + [(8, 64)] * 3
    assert len(compiler.threads) == 1 and threading.current_thread().name not in compiler.threads


@pytest.mark.parametrize("fails_at", ["the call of the compiler", "every shape", "the second shape"])
def test_what_cannot_be_compiled_is_computed_as_it_is_and_said_once(model, monkeypatch, caplog, fails_at):
    fake = FakeCompiler(fails=lambda shape: fails_at == "every shape" or shape[1] == 64)
    broken = fails_at == "the call of the compiler"
    monkeypatch.setattr(torch, "compile", (lambda *a, **k: 1 / 0) if broken else fake)
    engine, eager = CompiledEngine(model, device="cpu"), TransformersEngine(model, device="cpu")
    batches = [batch(3, 20), batch(3, 50), batch(30, 90)]
    with caplog.at_level(logging.WARNING, "raycommend.engines"):
        for one in batches * 2:
            engine.logits(*one)
            engine.settle()
        tries = len(fake.shapes)
        for one in batches:
            assert np.array_equal(engine.logits(*one), eager.logits(*one))
    [said] = caplog.messages
    assert "without compilation" in said and ("ZeroDivisionError" if broken else "RuntimeError") in said
    assert len(fake.shapes) == tries <= 3  # nothing is tried again


def test_a_graph_that_breaks_later_costs_no_call_its_answer(model, compiler, caplog):
    engine, eager = CompiledEngine(model, device="cpu"), TransformersEngine(model, device="cpu")
    one = batch(5, 20)
    settled(engine, one)
    compiler.fails = lambda shape: True
    with caplog.at_level(logging.WARNING, "raycommend.engines"):
        for _ in range(3):
            assert np.array_equal(engine.logits(*one), eager.logits(*one))
    assert len(caplog.messages) == 1


def test_only_a_gpu_gets_the_compiled_engine(model, compiler):
    assert type(build_engine("transformers", model, "cpu", list)) is TransformersEngine
    assert type(build_engine("transformers", model, "cuda", list)) is CompiledEngine
    assert type(build_engine("transformers", model, "cuda:1", list)) is CompiledEngine
    assert compiler.options == []  # nothing is compiled before something is asked


def test_a_ranker_ranks_alike_with_it(folder, catalog, compiler, make_query, make_candidates):
    ranker = TextRanker.load(folder, catalog, device="cpu", engine="transformers", cached_profiles=0)
    candidates = make_candidates(range(len(catalog)))
    wanted = ranker.score(make_query(), candidates)
    ranker.engine = CompiledEngine(ranker.engine._model, device="cpu")
    ranker.score(make_query(), candidates)
    ranker.engine.settle()
    compiler.shapes.clear()
    found = ranker.score(make_query(), candidates)
    assert compiler.shapes and np.abs(found - wanted).max() <= 1e-4
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(wanted, kind="stable"))
