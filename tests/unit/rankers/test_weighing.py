"""Which feature weighed most agrees with the network that scored, and costs no torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from models.rankers.calibration import PlattScaling
from models.rankers.compressed import CONFIG_FILE, CompressedModel
from models.rankers.fusion import FEATURE_NAMES, FusionFeatures
from models.rankers.inputs import label_vocabulary
from models.rankers.network import NetworkShape, head_logits, initialise
from models.rankers.weighing import FeatureWeights


@pytest.fixture
def folder(catalog, tmp_path):
    labels = label_vocabulary(catalog)
    shape = NetworkShape(text_dim=16, labels=len(labels), numbers=3, features=len(FEATURE_NAMES))
    parameters = initialise(shape, seed=3)
    generator = torch.Generator().manual_seed(4)
    for name in ("head.linear", "head.out", "head.mean"):  # as if it had been trained
        parameters[name] = torch.randn(parameters[name].shape, generator=generator)
    made = tmp_path / "ranker"
    made.mkdir()
    CompressedModel(shape, parameters, labels, ["year"], catalog.hashes[:0], PlattScaling(0.5, -3.0)).save(made)
    return made


@pytest.fixture
def weights(folder, catalog, embeddings, statistics) -> FeatureWeights:
    found = FeatureWeights.load(folder, catalog, embeddings, statistics)
    assert found is not None
    return found


def test_a_drop_is_what_the_network_s_own_head_loses_without_the_feature(
    weights, folder, catalog, embeddings, statistics, make_query, make_candidates
) -> None:
    features = FusionFeatures(catalog, embeddings, statistics).build(make_query(), make_candidates(range(12)))
    p = CompressedModel.read(folder).parameters
    drops = weights.drops(features)
    for at in range(len(FEATURE_NAMES)):
        changed = torch.from_numpy(features.copy())
        changed[:, at] = p["head.mean"][at]
        lost = head_logits(p, torch.from_numpy(features)) - head_logits(p, changed)
        assert np.allclose(drops[:, at], lost.numpy(), atol=1e-4)


def test_the_strongest_is_named_for_each_picked_item_in_order(weights, make_query, make_candidates) -> None:
    candidates = make_candidates(range(12))
    every = weights.strongest(make_query(), candidates, np.arange(12))
    assert set(every) <= {None, *FEATURE_NAMES} and len(set(every)) > 1
    assert weights.strongest(make_query(), candidates, np.array([7, 2])) == [every[7], every[2]]
    assert weights.strongest(make_query(), candidates, np.array([], np.int64)) == []


def test_another_ranker_has_no_such_features(folder, catalog, embeddings, statistics, tmp_path) -> None:
    body = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(body | {"features": ["old"]}))
    assert FeatureWeights.load(folder, catalog, embeddings, statistics) is None
    assert FeatureWeights.load(tmp_path, catalog, embeddings, statistics) is None


def test_reading_it_needs_no_torch() -> None:
    code = "import sys, models.rankers.weighing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_head_over_another_catalog_builds_no_tables_before_they_are_read(
    weights, catalog, embeddings, statistics, make_query, make_candidates
) -> None:
    grown = weights.over(catalog, embeddings, statistics)
    assert "features" not in vars(grown)
    asked = make_query(), make_candidates(range(10)), np.arange(10)
    assert grown.strongest(*asked) == weights.strongest(*asked)
    assert "features" in vars(grown)
