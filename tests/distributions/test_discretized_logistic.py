"""The discretised logistic mixture against differences of its distribution function."""

from __future__ import annotations

import pytest
import torch

from pyrogen.distributions import DiscretizedLogisticMixture
from tests.statistics import assert_mean_close


def mixture(dtype=torch.float64):
    loc = torch.tensor([[-3.0, 4.0], [0.3, 0.4]], dtype=dtype)
    scale = torch.tensor([[0.4, 2.0], [1.0, 0.1]], dtype=dtype)
    return DiscretizedLogisticMixture(loc, scale, torch.tensor([[0.0, 1.0], [2.0, 0.0]]).to(dtype))


def test_probabilities_are_differences_of_the_distribution_function():
    fn, x = mixture(), torch.arange(-30, 30).unsqueeze(-1)
    upper, lower = (
        torch.sigmoid((x.unsqueeze(-1) + side - fn.loc) / fn.scale) for side in (0.5, -0.5)
    )
    expected = (fn.logits.softmax(-1) * (upper - lower)).sum(-1)
    # The difference loses digits: it is off by a few roundings of 1.
    torch.testing.assert_close(fn.log_prob(x).exp(), expected, rtol=0, atol=1e-15)


def test_probabilities_sum_to_one():
    # Beyond 200 / 2 scales the tail is below e^-98.
    total = mixture().log_prob(torch.arange(-200, 201).unsqueeze(-1)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("scale", [0.01, 1.0, 50.0])
def test_the_tails_are_exact_in_single_precision(scale):
    x = torch.tensor([-500.0, -40.0, 0.0, 40.0, 500.0])
    single = DiscretizedLogisticMixture(torch.zeros(1), torch.full((1,), scale)).log_prob(x)
    zero = torch.zeros(1, dtype=torch.float64)
    double = DiscretizedLogisticMixture(zero, torch.full_like(zero, scale)).log_prob(x)
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-6)


def test_draws_have_the_probabilities():
    fn = mixture()
    draws = fn.sample((100_000,))
    assert torch.equal(draws, draws.round())
    support = torch.arange(-10, 15)
    seen = (draws.unsqueeze(-1) == support).double()
    expected = fn.log_prob(support.unsqueeze(-1)).exp().T
    common = expected > 1e-3  # seen often enough for a frequency to be close to normal
    assert common.sum() > 15
    assert_mean_close(seen[:, common], expected[common])


def test_gradients():
    loc = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    x = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def log_prob(*p):  # finite differences of x are no integers
        return DiscretizedLogisticMixture(*p[:3], validate_args=False).log_prob(p[3])

    assert torch.autograd.gradcheck(log_prob, (loc, scale, logits, x))


def test_expand_dtype_and_errors():
    fn = mixture(torch.float32)
    wide = fn.expand((3, 2))
    assert wide.sample((4,)).shape == (4, 3, 2)
    assert wide.sample().dtype == torch.float32
    x = fn.sample()
    torch.testing.assert_close(wide.log_prob(x)[1], fn.log_prob(x))
    torch.testing.assert_close(fn.log_prob(x.long()), fn.log_prob(x))
    with pytest.raises(ValueError, match=r"loc: expected shape \[\*batch_shape, K\], got \[\]"):
        DiscretizedLogisticMixture(torch.tensor(0.0), torch.tensor(1.0))
    strict = DiscretizedLogisticMixture(torch.zeros(1), torch.ones(1), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        strict.log_prob(torch.tensor(0.5))
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogisticMixture(torch.zeros(1), -torch.ones(1), validate_args=True)
