"""Telling draws from data, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from pyrogen.diagnostics import two_sample_test
from pyrogen.diagnostics.two_sample import _tail


def test_one_law_is_told_half_of_the_time_and_p_values_are_uniform():
    tests = [two_sample_test(torch.randn(60, 2), torch.randn(90, 2)) for _ in range(400)]
    accuracy = torch.tensor([test.accuracy for test in tests])
    assert abs(float(accuracy.mean()) - 0.5) < 5 * float(accuracy.std()) / 20
    assert abs(float(accuracy.std()) - 0.5 / 60**0.5) < 0.01
    low = torch.tensor([test.p_value < 0.1 for test in tests]).float()
    assert float(low.mean()) < 0.1 + 5 * (0.09 / 400) ** 0.5
    covered = [test.interval[0] < 0.5 < test.interval[1] for test in tests]
    assert abs(sum(covered) / 400 - 0.95) < 5 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64])
def test_events_may_be_numbers_of_any_type(dtype):
    data = torch.arange(100).to(dtype)
    assert two_sample_test(data, data.double() + 1_000).accuracy == 1.0


def test_p_values_are_tails_of_tosses():
    for right, count in ((0, 7), (5, 7), (60, 100), (1_030, 2_000)):
        exact = sum(math.comb(count, k) for k in range(right, count + 1)) / 2**count
        assert _tail(right, count) == pytest.approx(exact, rel=1e-9)


def test_laws_far_apart_are_told_always():
    test = two_sample_test(torch.randn(100, 3, 3), torch.randn(100, 3, 3) + 50)
    assert test.accuracy == 1.0
    assert test.p_value == pytest.approx(0.5**100)
    assert test.interval[0] > 0.95


def test_it_is_as_good_as_the_best_classifier_may_be():
    """Two uniform laws that share half of their support: at best three quarters are told."""
    test = two_sample_test(torch.rand(4_000, 1), torch.rand(4_000, 1) + 0.5, neighbours=51)
    assert abs(test.accuracy - 0.75) < 5 * (0.75 * 0.25 / 4_000) ** 0.5 + 0.01


@pytest.mark.parametrize(
    ("data", "draws", "neighbours", "message"),
    [
        ((20, 2), (20, 3), 5, r"expected events of shape \[2\], got \[3\]"),
        ((20, 2), (20, 2), 4, "positive odd number, got 4"),
        ((9, 2), (20, 2), 5, "at least 10 events of each kind, got 9 and 20"),
    ],
)
def test_bad_arguments_are_explained(data, draws, neighbours, message):
    with pytest.raises(ValueError, match=message):
        two_sample_test(torch.zeros(data), torch.zeros(draws), neighbours)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="draws: expected finite values"):
        two_sample_test(torch.zeros(20, 2), torch.full((20, 2), torch.nan))
