import numpy as np

from models.rankers.calibration import expected_calibration_error, fit_platt


def test_platt_recovers_the_probabilities_that_made_the_outcomes():
    rng = np.random.default_rng(0)
    logits = rng.normal(5.0, 3.0, 50_000).astype(np.float32)
    truth = 1 / (1 + np.exp(-(0.7 * logits - 6.0)))
    taken = rng.random(50_000) < truth
    platt = fit_platt(logits, taken)
    assert platt is not None
    assert abs(platt.slope - 0.7) < 0.05
    assert expected_calibration_error(platt.apply(logits), taken) < 0.01


def test_a_logit_that_ranks_backwards_is_not_calibrated():
    logits = np.linspace(-1, 1, 400).astype(np.float32)
    assert fit_platt(logits, logits < 0) is None


def test_too_few_outcomes_are_not_calibrated():
    assert fit_platt(np.zeros(5, np.float32), np.array([True, False, False, False, False])) is None


def test_the_calibration_error_is_the_gap_between_statement_and_frequency():
    stated = np.full(1000, 0.5, np.float32)
    assert abs(expected_calibration_error(stated, np.zeros(1000, bool)) - 0.5) < 1e-6
    assert expected_calibration_error(np.empty(0, np.float32), np.empty(0, bool)) == 0.0
