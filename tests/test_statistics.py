"""The statistical assertions accept what is right and reject what is a little wrong."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from tests.statistics import assert_follows, assert_mean_close

# A shift of 8 standard errors is missed with probability Phi(4.3 - 8) = 1e-4 for one element.
SHIFT = 8 / 10_000**0.5


def test_mean_accepts_the_mean():
    assert_mean_close(torch.randn(10_000, 3) + 5, 5.0)


@pytest.mark.parametrize("shift", [-SHIFT, SHIFT])
def test_mean_rejects_a_shift_on_either_side(shift):
    with pytest.raises(AssertionError, match="off by"):
        assert_mean_close(torch.randn(10_000) + shift, 0.0)


def test_mean_of_constants_is_exact():
    assert_mean_close(torch.full((10,), 0.1), 0.1)
    with pytest.raises(AssertionError, match="off by"):
        assert_mean_close(torch.full((10,), 0.1), 0.1001)


def test_mean_refuses_one_sample():
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        assert_mean_close(torch.zeros(1), 0.0)


def test_fit_accepts_the_density_and_rejects_another():
    samples = torch.randn(10_000, 2)
    assert_follows(samples, dist.Normal(0.0, 1.0).log_prob(samples).sum(-1))
    with pytest.raises(AssertionError, match="goodness of fit"):
        assert_follows(samples, dist.Normal(0.0, 1.2).log_prob(samples).sum(-1))
