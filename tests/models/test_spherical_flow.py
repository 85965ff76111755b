"""Flows on the sphere: the uniform density, rotations, and what is refused."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import AffineTransform

from pyrogen.guides import Empty
from pyrogen.models import SphericalFlow
from pyrogen.nn import TimeMLP
from pyrogen.transforms import AffineCoupling, ContinuousSphereFlow
from tests.statistics import assert_mean_close


def test_the_uniform_density():
    model = SphericalFlow(2).double()
    x = model(None, num_samples=5)
    assert x.dtype == torch.float64
    loss = Trace_ELBO().loss(model, Empty(), x)
    assert loss == pytest.approx(5 * math.log(4 * math.pi), rel=1e-12)


def test_another_base_is_kept():
    base = dist.ProjectedNormal(torch.tensor([2.0, 0.0, 0.0]))
    model = SphericalFlow(2, base=base)
    x = model(None, num_samples=20_000)
    # E cos of the angle for ProjectedNormal, by its own density on the sphere.
    angle = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    middle = (angle[1:] + angle[:-1]) / 2
    points = torch.stack([middle.cos(), middle.sin(), torch.zeros_like(middle)], -1)
    density = model.double().distribution().log_prob(points).exp() * 2 * math.pi * middle.sin()
    weight = density * (angle[1] - angle[0])
    assert weight.sum().item() == pytest.approx(1, abs=1e-6)
    assert_mean_close(x[:, 0], (weight * middle.cos()).sum())


def test_points_off_the_sphere_are_refused():
    model = SphericalFlow(2)
    x = model(None, num_samples=4)
    assert torch.equal(model(x), x)
    with pytest.raises(ValueError, match=r"unit vectors, got lengths .* by up to 0\.01; divide"):
        model(1.01 * x)
    with pytest.raises(ValueError, match=r"expected shape \[\*, 3\]"):
        model(torch.ones(4, 2))
    with pytest.raises(ValueError, match="num_samples: expected None with data"):
        model(x, num_samples=3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="dim: expected a positive integer, got 0"):
        SphericalFlow(0)
    with pytest.raises(ValueError, match="without a context"):
        SphericalFlow(2, [AffineCoupling(3, split=1, context_dim=2)])
    with pytest.raises(ValueError, match=r"events of shape \[3\].*got \[4\]"):
        SphericalFlow(2, base=dist.ProjectedNormal(torch.zeros(4)))
    with pytest.raises(ValueError, match="fit the base"):
        SphericalFlow(2, [AffineTransform(torch.zeros(2), 1.0)])


def von_mises_fisher(concentration, num_samples):
    """Draws around the north pole of S²: the height has a truncated exponential density."""
    uniform = torch.rand(num_samples)
    decay = math.exp(-2 * concentration)
    height = 1 + torch.log(uniform + (1 - uniform) * decay) / concentration
    angle = 2 * math.pi * torch.rand(num_samples)
    radius = (1 - height**2).clamp_min(0).sqrt()
    x = torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.slow
def test_svi_comes_close_to_the_entropy_of_von_mises_and_fisher():
    kappa = 3.0
    log_z = math.log(4 * math.pi * math.sinh(kappa) / kappa)
    entropy = log_z - kappa * (1 / math.tanh(kappa) - 1 / kappa)
    field = TimeMLP(3, hidden=(16,))
    model = SphericalFlow(2, [ContinuousSphereFlow(field)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(80):
        optimizer.zero_grad()
        (-model.distribution().log_prob(von_mises_fisher(kappa, 128)).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        nll = -model.distribution().log_prob(von_mises_fisher(kappa, 5000))
    noise = 5 * nll.std() / len(nll) ** 0.5
    # 1.85 nats against log 4 pi = 2.53 of the uniform density it starts as.
    assert entropy - noise < nll.mean() < entropy + 0.05 + noise
