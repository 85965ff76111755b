"""Against closed forms in double precision, quadrature, and its own draws."""

from __future__ import annotations

import copy
import pickle

import numpy
import pyro
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyrogen.distributions import ContinuousBernoulli
from tests.statistics import assert_follows, assert_mean_close

LOGITS = [
    -200.0,
    -20.0,
    -3.0,
    -0.6001,
    -0.5999,
    -0.1,
    -1e-4,
    0.0,
    1e-6,
    0.004,
    0.5,
    2.0,
    17.0,
    60.0,
]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("logit", LOGITS)
def test_density_integrates_to_one(logit):
    # An exponential function: Gauss-Legendre quadrature with 256 nodes on each of 8 panels is exact
    # to rounding.
    nodes, weights = map(double, numpy.polynomial.legendre.leggauss(256))
    edges = torch.linspace(0, 1, 9, dtype=torch.float64)
    half = (edges[1:] - edges[:-1])[:, None] / 2
    x = edges[:-1, None] + half * (nodes + 1)
    density = ContinuousBernoulli(double(logit)).log_prob(x).exp()
    assert (density * weights * half).sum() == pytest.approx(1.0, abs=1e-12)
    mean = (x * density * weights * half).sum()
    square = (x**2 * density * weights * half).sum()
    distribution = ContinuousBernoulli(double(logit))
    assert distribution.mean == pytest.approx(mean.item(), rel=1e-11)
    assert distribution.variance == pytest.approx((square - mean**2).item(), abs=1e-14)


def test_single_precision_is_as_good_as_double():
    x = torch.linspace(0, 1, 11)[:, None]
    logits = torch.cat([torch.tensor(LOGITS), torch.linspace(-1.5, 1.5, 301)])
    results = {}
    for dtype in (torch.float32, torch.float64):
        argument = logits.to(dtype).requires_grad_()
        log_prob = ContinuousBernoulli(argument).log_prob(x.to(dtype))
        (gradient,) = torch.autograd.grad(log_prob.sum(), argument)
        results[dtype] = log_prob.detach().double(), gradient.double()
    # A few roundings of numbers no larger than max(1, |logit|), 11 values for the gradient.
    eps = 4 * torch.finfo(torch.float32).eps
    for single, exact, size in zip(
        results[torch.float32],
        results[torch.float64],
        (logits.abs().clamp_min(1), 11.0),
        strict=True,
    ):
        assert ((single - exact).abs() <= eps * size).all()


def test_gradient_is_the_distance_to_the_mean():
    logits = double(LOGITS).requires_grad_()
    distribution = ContinuousBernoulli(logits)
    (gradient,) = torch.autograd.grad(distribution.log_prob(double(0.3)).sum(), logits)
    torch.testing.assert_close(gradient, 0.3 - distribution.mean.detach(), rtol=1e-9, atol=1e-13)
    (slope,) = torch.autograd.grad(ContinuousBernoulli(logits).mean.sum(), logits)
    torch.testing.assert_close(slope, distribution.variance.detach(), rtol=1e-6, atol=1e-13)


def test_derivatives_against_differences():
    logits = double([-3.0, -0.7, 0.0, 0.3, 2.0]).requires_grad_()
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)

    def log_prob(logits, x):
        return ContinuousBernoulli(logits, validate_args=False).log_prob(x)

    assert gradcheck(log_prob, (logits, x))
    assert gradgradcheck(log_prob, (logits, x))


def test_zero_logit_is_uniform():
    distribution = ContinuousBernoulli(double(0.0))
    assert distribution.log_prob(double(0.2)) == 0
    assert distribution.mean == 0.5
    assert distribution.variance == pytest.approx(1 / 12, rel=1e-15)


@pytest.mark.parametrize("logit", [-30.0, -2.0, 0.0, 1e-3, 5.0])
def test_draws_follow_the_density(logit):
    distribution = ContinuousBernoulli(double(logit))
    draws = distribution.sample((20_000,))
    assert_follows(draws, distribution.log_prob(draws))
    assert_mean_close(draws, distribution.mean)


@pytest.mark.parametrize("logit", LOGITS)
def test_draws_stay_in_the_unit_interval(logit):
    draws = ContinuousBernoulli(torch.tensor(logit)).sample((100_000,))
    assert draws.dtype == torch.float32
    assert ((draws >= 0) & (draws <= 1)).all()


def test_torch_and_this_agree_where_torch_is_accurate():
    logits = double([-3.0, -1.0, 0.5, 2.0, 8.0])
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    ours = ContinuousBernoulli(logits)
    x = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.mean, theirs.mean)
    torch.testing.assert_close(ours.variance, theirs.variance)


def test_expand_events_and_copies():
    logits = torch.randn(4, 3)
    distribution = ContinuousBernoulli(logits)
    expanded = distribution.expand((2, 4, 3))
    assert expanded.batch_shape == (2, 4, 3)
    assert expanded.sample((5,)).shape == (5, 2, 4, 3)
    assert distribution.batch_shape == (4, 3)
    event = distribution.to_event(1)
    x = event.sample()
    torch.testing.assert_close(event.log_prob(x), distribution.log_prob(x).sum(-1))
    for clone in (copy.deepcopy(distribution), pickle.loads(pickle.dumps(distribution))):
        assert torch.equal(clone.log_prob(x), distribution.log_prob(x))


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_values_outside_the_support_are_refused(value):
    distribution = ContinuousBernoulli(torch.zeros(2), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        distribution.log_prob(torch.tensor(value))
    with pytest.raises(ValueError, match="logits"):
        ContinuousBernoulli(torch.tensor(torch.nan), validate_args=True)


def test_as_a_site():
    with pyro.plate("data", 5):
        x = pyro.sample("x", ContinuousBernoulli(torch.tensor(2.0)))
    assert x.shape == (5,)
