"""Calibration by hand and by law; the reliability diagram."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrogen.diagnostics import calibration, plot_reliability
from tests.statistics import assert_mean_close


def test_the_numbers_of_a_small_table():
    probabilities = torch.tensor([[0.58, 0.42], [0.68, 0.32], [0.12, 0.88], [0.05, 0.95], [1, 0]])
    labels = torch.tensor([0, 1, 1, 1, 0])
    result = calibration(probabilities, labels, num_bins=2)
    assert result.count.tolist() == [0, 5]
    assert result.accuracy == pytest.approx(0.8)
    assert result.expected_error == pytest.approx(abs(0.8 - 0.818), abs=1e-6)
    result = calibration(probabilities, labels, num_bins=10)
    assert result.count.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1, 2]
    gaps = [0.42, 0.68, 0.12, 0.025, 0.025]
    assert result.expected_error == pytest.approx(sum(gaps) / 5, abs=1e-6)
    assert result.maximum_error == pytest.approx(0.68, abs=1e-6)
    squares = [2 * 0.42**2, 2 * 0.68**2, 2 * 0.12**2, 2 * 0.05**2, 0]
    assert result.brier == pytest.approx(sum(squares) / 5, abs=1e-6)
    chosen = torch.tensor([0.58, 0.32, 0.88, 0.95, 1.0])
    assert result.nats == pytest.approx(-float(chosen.log().mean()), rel=1e-6)


def test_labels_drawn_from_the_probabilities_are_calibrated():
    """In each bin the share of right ones has the mean probability as mean."""
    probabilities = dist.Dirichlet(torch.full((4,), 0.7)).sample((50_000,))
    labels = dist.Categorical(probabilities).sample()
    result = calibration(probabilities, labels)
    assert result.count.sum() == 50_000
    first, choice = probabilities.max(-1)
    assert_mean_close((choice == labels).double() - first, 0.0)
    # Each filled bin is off by its binomial error, of standard deviation below 1 / sqrt(4 n).
    filled = result.count > 0
    error = (result.frequency - result.confidence)[filled]
    deviations = error * 2 * result.count[filled].double().sqrt()
    assert deviations.abs().max() < 5.5


def test_overconfidence_is_measured():
    """Labels that are right with probability c - 0.2 where the classifier says c."""
    said = 0.6 + 0.4 * torch.rand(50_000)
    right = torch.bernoulli(said - 0.2).bool()
    result = calibration(torch.stack([said, 1 - said], -1), (~right).long())
    standard_error = (0.25 / 50_000) ** 0.5
    # Gaps of one sign: their weighted mean is the mean over all cases.
    assert abs(result.expected_error - 0.2) < 5 * standard_error


def test_wrong_arguments_are_refused():
    even = torch.full((3, 2), 0.5)
    with pytest.raises(ValueError, match=r"expected shapes \[n, num_classes\] and \[n\]"):
        calibration(even, torch.zeros(2))
    with pytest.raises(ValueError, match="take the softmax of logits"):
        calibration(torch.randn(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"labels: expected classes 0\.\.1"):
        calibration(even, torch.tensor([0, 1, -1]))
    with pytest.raises(ValueError, match="num_bins: expected a positive integer"):
        calibration(even, torch.zeros(3), num_bins=0)


def test_the_diagram_shows_each_classifier_and_the_diagonal():
    even = calibration(torch.full((3, 2), 0.5), torch.tensor([0, 1, 0]))
    figure = plot_reliability({"one": even, "other": even}, title="Two")
    assert len(figure.axes[0].lines) == 3
    assert "one (error 0.167)" in [text.get_text() for text in figure.axes[0].get_legend().texts]
    with pytest.raises(ValueError, match="results: expected at least one"):
        plot_reliability({})
