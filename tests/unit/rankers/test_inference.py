"""The folded network that serves against the one that is trained."""

import numpy as np
import pytest
import torch

from models.rankers.fusion import FEATURE_NAMES
from models.rankers.inference import ServingNetwork
from models.rankers.network import HistoryTensors, NetworkShape, attention_logits, head_logits, initialise

ITEMS = 200


@pytest.fixture
def shape():
    return NetworkShape(text_dim=16, labels=3, numbers=2, features=len(FEATURE_NAMES))


@pytest.fixture
def parameters(shape):
    generator = torch.Generator().manual_seed(7)
    fresh = initialise(shape, seed=5)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).abs() for name, tensor in fresh.items()}


@pytest.fixture
def tokens(shape):
    table = torch.randn(1 + ITEMS, shape.dim, generator=torch.Generator().manual_seed(2))
    table[0] = 0.0
    return table


def past(length, seed=0):
    rng = np.random.default_rng(seed)
    tops = (ITEMS, 9, 5, 20)
    return np.stack([rng.integers(1, top, length) for top in tops]).astype(np.int64)


@pytest.mark.parametrize("length", [0, 1, 2, 17, 30])
def test_the_served_network_says_what_the_trained_one_says(shape, parameters, tokens, length):
    history, rows = past(length), np.arange(ITEMS, dtype=np.int32)
    features = np.random.default_rng(1).normal(size=(ITEMS, len(FEATURE_NAMES))).astype(np.float32)
    columns = torch.from_numpy(history if length else np.zeros((4, 1), np.int64)).unsqueeze(1)
    with torch.inference_mode():
        own = tokens[1:][None]
        wanted = attention_logits(parameters, shape, HistoryTensors(*columns), tokens[columns[0]], own)[0]
        head = head_logits(parameters, torch.from_numpy(features))
    served = ServingNetwork(parameters, shape, tokens)
    attention = served.logits(history, rows, None)
    assert attention.std() > 0.05
    assert np.abs(attention - wanted.numpy()).max() <= 1e-4
    assert np.abs(served.logits(history, rows, features) - (wanted + head).numpy()).max() <= 1e-4


def test_a_candidate_scores_the_same_alone_and_among_others(shape, parameters, tokens):
    served, history = ServingNetwork(parameters, shape, tokens), past(20)
    rows = np.arange(ITEMS, dtype=np.int32)
    together = served.logits(history, rows, None)
    alone = np.concatenate([served.logits(history, rows[at : at + 1], None) for at in range(ITEMS)])
    assert np.abs(together - alone).max() <= 1e-4
    assert np.array_equal(np.argsort(together), np.argsort(alone))


def test_folding_leaves_the_parameters_as_they_were(shape, parameters, tokens):
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    ServingNetwork(parameters, shape, tokens).logits(past(5), np.arange(9, dtype=np.int32), None)
    assert all(torch.equal(before[name], parameters[name]) for name in before)
