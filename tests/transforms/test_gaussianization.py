"""Iterative Gaussianisation on laws whose entropy is known."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import Gaussianization
from pyrogen.transforms.gaussianization import _quantiles
from tests.statistics import assert_mean_close


def negative_log_likelihood(flow, data):
    base = dist.Normal(torch.zeros(data.shape[-1]), 1.0).to_event(1)
    with torch.no_grad():
        return -FlowDistribution(base, [flow]).log_prob(data).mean().item()


def test_one_layer_fits_independent_marginals():
    """Logistic and log-normal marginals. One rotation is the identity here, so that one layer can
    reach the entropy; what it lacks is the resolution of 32 bins and the error of 20,000 quantiles.
    """

    def draw(n):
        u = torch.rand(n)
        return torch.stack([u.log() - (-u).log1p(), (0.5 * torch.randn(n)).exp()], dim=-1)

    flow = Gaussianization(2, num_layers=1, num_bins=32)
    flow.rotations.copy_(torch.eye(2).expand(1, 2, 2))
    flow.initialize(draw(20_000))
    entropy = 2.0 + 0.5 * math.log(2 * math.pi * math.e * 0.25)
    test = draw(20_000)
    excess = negative_log_likelihood(flow, test) - entropy
    # 5 standard errors of the mean of 20,000 log-densities, whose own standard deviation is about 1
    assert -5 / math.sqrt(20_000) <= excess <= 0.03


def test_principal_axes_make_a_gaussian_in_one_layer():
    factor = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [-1.0, 0.3, 1.0]])
    flow = Gaussianization(3, num_layers=1, rotation="pca")
    flow.initialize(torch.randn(20_000, 3) @ factor.T)
    latent = flow.inv(torch.randn(20_000, 3) @ factor.T)
    torch.testing.assert_close(torch.cov(latent.T), torch.eye(3), atol=0.05, rtol=0)
    entropy = 1.5 * math.log(2 * math.pi * math.e) + math.log(factor.diagonal().prod())
    test = torch.randn(20_000, 3) @ factor.T
    assert -0.05 <= negative_log_likelihood(flow, test) - entropy <= 0.03


def ring(n):
    """Eight Gaussians on a circle; entropy 2.831880 nats."""
    angle = torch.randint(8, (n,)) * math.pi / 4
    centre = 4 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return (centre + 0.5 * torch.randn(n, 2)) / math.sqrt(2)


def test_each_layer_brings_held_out_data_nearer_to_normal():
    """What the theory says of any rotation, on eight Gaussians; and never below their entropy."""
    data, test = ring(10_000), ring(10_000)
    scores = []
    for layers in (1, 4, 16):
        torch.manual_seed(0)
        flow = Gaussianization(2, layers, num_bins=24)
        flow.initialize(data)
        scores.append(negative_log_likelihood(flow, test))
    single = dist.MultivariateNormal(torch.zeros(2), torch.cov(data.T))
    assert -single.log_prob(test).mean() > scores[0] > scores[1] + 0.1 > scores[2] + 0.2
    assert scores[2] > 2.831880 - 0.05


def test_draws_follow_the_data():
    data = ring(10_000)
    flow = Gaussianization(2, 20, num_bins=24)
    latent = flow.initialize(data)
    torch.testing.assert_close(flow(latent), data, atol=1e-3, rtol=0)
    draws = flow(torch.randn(10_000, 2))
    assert_mean_close(draws, torch.zeros(2), failure_rate=1e-9)


def test_training_goes_on_from_the_fit():
    """The parameters of fit and training are the same, and gradients improve on the fit."""
    data = ring(2000)
    flow = Gaussianization(2, 3, num_bins=12)
    flow.initialize(data)
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    before = negative_log_likelihood(flow, data)
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        (-FlowDistribution(base, [flow]).log_prob(data).mean()).backward()
        optimiser.step()
    assert negative_log_likelihood(flow, data) < before - 0.05
    torch.testing.assert_close(flow(flow.inv(data)), data, atol=1e-4, rtol=0)


def test_quantiles_are_torchs():
    values, levels = torch.randn(101, 3), torch.tensor([0.0, 0.013, 0.5, 0.99, 1.0])
    torch.testing.assert_close(_quantiles(values, levels), values.quantile(levels, dim=0).T)


def test_tails_go_on_straight():
    flow = Gaussianization(1, 1, num_bins=8)
    flow.initialize(3 * torch.randn(5000, 1))
    far, further = flow(torch.tensor([[50.0]])), flow(torch.tensor([[100.0]]))
    torch.testing.assert_close((further - far).abs(), torch.tensor([[150.0]]), atol=0, rtol=0.1)


def test_bad_arguments_and_data_are_refused():
    with pytest.raises(ValueError, match="expected one of"):
        Gaussianization(2, 1, rotation="ica")
    with pytest.raises(ValueError, match="expected positive integers"):
        Gaussianization(2, 0)
    with pytest.raises(ValueError, match="bound: expected a positive number"):
        Gaussianization(2, 1, bound=0.0)
    flow = Gaussianization(2, 1)
    with pytest.raises(ValueError, match="more data than the 17 knots"):
        flow.initialize(torch.randn(10, 2))
    with pytest.raises(ValueError, match="vary in every direction"):
        flow.initialize(torch.ones(100, 2))
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 2\]"):
        flow(torch.zeros(3))
