"""Noise-contrastive estimation of a Gaussian, whose log Z is known."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import logsigmoid

from pyrogen.distributions import EnergyBased
from pyrogen.losses import NoiseContrastive
from pyrogen.models import real_nvp
from tests.statistics import assert_mean_close

LINE = dist.ImproperUniform(dist.constraints.real, (), ())
NOISE = dist.Normal(torch.tensor(0.5).double(), 2.0)
TRUTH = torch.tensor([1.0, 0.5 * math.log(2 * math.pi)], dtype=torch.float64)  # precision and log Z


def gaussian(parameters):
    """Energy a x²/2 + c, each datum with parameters of its own."""
    return EnergyBased(lambda x, p: p[:, 0] * x.square() / 2 + p[:, 1], LINE, context=parameters)


def gradients(parameters, x, ratio):
    """Minus the gradient in (a, c) for each datum with its noise, ``[n, 2]``."""
    copies = parameters.expand(len(x), 2).clone().requires_grad_()
    score = NoiseContrastive(NOISE, ratio).score("x", gaussian(copies), x)
    return torch.autograd.grad(-score.sum(), copies)[0]


def expected_gradient(parameters, ratio):
    """By the trapezoidal rule, which converges geometrically on the line."""
    grid = torch.linspace(-25, 25, 20_001).double()
    width = grid[1] - grid[0]
    p = parameters.clone().requires_grad_()
    model = -p[0] * grid.square() / 2 - p[1]
    odds = model - NOISE.log_prob(grid) - math.log(ratio)
    data = dist.Normal(0.0, 1.0).log_prob(grid).exp()
    noise = NOISE.log_prob(grid).exp()
    objective = width * (data * logsigmoid(odds) + ratio * noise * logsigmoid(-odds)).sum()
    return torch.autograd.grad(-objective, p)[0]


@pytest.mark.parametrize("ratio", [1, 5])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_gradients_are_those_of_the_objective(ratio, shift):
    """Which vanishes at the truth, log Z included."""
    x = torch.randn(20_000).double()
    expected = expected_gradient(TRUTH + shift, ratio)
    assert_mean_close(gradients(TRUTH + shift, x, ratio), expected)
    assert (expected.abs() < 1e-9).all() == (shift == 0.0)


def test_log_z_is_recovered():
    """Newton's method on fixed noise; within five standard errors of the sandwich formula."""
    x = torch.randn(10_000).double()
    p = TRUTH + torch.tensor([0.5, -0.5]).double()

    def each(p):
        torch.manual_seed(1)
        return gradients(p, x, ratio=4)

    for _ in range(20):
        step = 1e-5 * torch.eye(2).double()
        columns = [(each(p + h).mean(0) - each(p - h).mean(0)) / 2e-5 for h in step]
        hessian = torch.stack(columns)
        p = p - torch.linalg.solve(hessian, each(p).mean(0))
    final = each(p)
    assert final.mean(0).abs().max() < 1e-8
    bread = torch.linalg.inv(hessian)
    covariance = bread @ final.T.cov() @ bread / len(x)
    assert ((p - TRUTH).abs() < 5 * covariance.diagonal().sqrt()).all()
    assert covariance.diagonal().sqrt().max() < 0.05


def test_telling_the_same_from_the_same_is_a_toss():
    """Noise with the law of the data and ratio 1: log(1/2) for each of the pair, always."""
    noise = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    fn = EnergyBased(lambda x: torch.zeros(len(x)), noise)
    score = NoiseContrastive(noise).score("x", fn, torch.randn(10, 3))
    torch.testing.assert_close(score, torch.full((10,), 2 * math.log(0.5)))


def test_a_flow_as_noise_is_held_fixed_and_read_anew():
    flow = real_nvp(2, num_layers=2, hidden=(8,))
    scale = torch.ones((), requires_grad=True)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    fn, x = EnergyBased(lambda x: scale * x.square().sum(-1), base), torch.randn(5, 2)
    loss = NoiseContrastive(flow.distribution, ratio=3)

    def score():
        torch.manual_seed(1)
        return loss.score("x", fn.expand([5]), x).sum()

    before = score()
    before.backward()
    assert scale.grad.abs() > 0
    assert all(p.grad is None for p in flow.parameters())
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    assert (score() - before).abs() > 1e-3


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="noise: expected a distribution or a function"):
        NoiseContrastive(1.0)
    with pytest.raises(ValueError, match="ratio: expected a positive integer"):
        NoiseContrastive(NOISE, ratio=0.5)
    fn = EnergyBased(lambda x: x.sum(-1), dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pytest.raises(ValueError, match=r"noise: expected event shape \[2\] as at site 'x'"):
        NoiseContrastive(NOISE).score("x", fn, torch.zeros(2))
