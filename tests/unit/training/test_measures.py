import numpy as np

from pipelines.training.measures import gains, list_loss, ndcg_at, paired_bootstrap


def test_gain_falls_with_the_place_of_the_target():
    scores = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], np.float32)
    assert np.allclose(gains(scores, np.array([0, 1, -1], np.int32)), [1.0, 1 / np.log2(3), 0.0])
    assert gains(scores, np.array([2, 2, 2], np.int32), at=2).sum() == 0.0


def test_a_constant_score_gains_what_chance_gains():
    scores = np.zeros((1, 100), np.float32)
    assert ndcg_at(scores, np.array([0], np.int32)) == 0.0  # place 49.5 is outside the first ten


def test_the_list_loss_is_the_log_share_of_the_target_and_skips_missed_lists_and_padding():
    scores = np.array([[0.0, 0.0, 0.0, -np.inf], [9.0, 1.0, 0.0, -np.inf]], np.float32)
    assert abs(list_loss(scores, np.array([1, -1], np.int32)) - np.log(3)) < 1e-6
    assert list_loss(scores, np.array([-1, -1], np.int32)) == 0.0


def test_the_bootstrap_finds_a_real_difference_and_none_where_there_is_none():
    rng = np.random.default_rng(0)
    base, user = rng.random(2000), np.repeat(np.arange(500), 4).astype(np.int32)
    better = paired_bootstrap(base + 0.05 + rng.normal(0, 0.1, 2000), base, user, rounds=500)
    assert 0.03 < better.lower < better.mean < better.upper < 0.07
    same = paired_bootstrap(base + rng.normal(0, 0.1, 2000), base, user, rounds=500)
    assert same.lower < 0 < same.upper
