"""Flows on the sphere: their densities integrate to one, and a known flow has a known density."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.nn import TimeMLP
from pyrogen.transforms import AffineCoupling, ContinuousSphereFlow, SphereFlow
from tests.statistics import assert_mean_close

LOG_AREA = math.log(4 * math.pi)  # of the unit sphere of three dimensions


class Uniform(dist.TorchDistribution):
    """On the sphere of three dimensions."""

    support = dist.constraints.sphere
    arg_constraints = {}
    has_rsample = True

    def __init__(self):
        super().__init__((), (3,), validate_args=False)

    def rsample(self, sample_shape=()):
        return unit(torch.randn(*sample_shape, 3, dtype=torch.float64))

    def log_prob(self, value):
        return value.new_full(value.shape[:-1], -LOG_AREA)


class Dilation(dist.TransformModule):
    """v = u * scale in the plane, which the projection turns into a conformal map."""

    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def _call(self, x):
        return x * self.scale

    def _inverse(self, y):
        return y / self.scale

    def log_abs_det_jacobian(self, x, y):
        return x.new_full(x.shape[:-1], x.shape[-1] * math.log(self.scale))


class ToPole(nn.Module):
    """The gradient field of x_3 times a rate; its flow is the dilation by exp(rate)."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x, t):
        return self.rate * torch.eye(3, dtype=x.dtype)[2].expand(x.shape)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def quadrature(n=24):
    """Gauss-Legendre in height times the trapezoid rule in longitude: exact to degree 2 n - 1."""
    height, weight = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(n))
    angle = torch.arange(2 * n).double() * (math.pi / n)
    z, phi = (v.flatten() for v in torch.meshgrid(height, angle, indexing="ij"))
    radius = (1 - z.square()).sqrt()
    points = torch.stack([radius * phi.cos(), radius * phi.sin(), z], -1)
    return unit(points), (weight * math.pi / n).repeat_interleave(2 * n)


def dilated_density(y, scale):
    """Of uniform points after the dilation: conformal, so the Jacobian is the factor squared."""
    z = y[..., 2]
    factor = 2 * scale / ((1 + z) + scale**2 * (1 - z))
    return factor.square().log() - LOG_AREA


@pytest.mark.parametrize("scale", [0.5, 1.7])
@pytest.mark.parametrize("kind", ["stereographic", "continuous"])
def test_a_dilation_has_its_density(kind, scale):
    if kind == "stereographic":
        flow = SphereFlow(Dilation(scale))
    else:
        flow = ContinuousSphereFlow(ToPole(math.log(scale)), atol=1e-11, rtol=1e-11)
    y = Uniform().sample((50,))
    log_prob = FlowDistribution(Uniform(), [flow]).log_prob(y)
    torch.testing.assert_close(log_prob, dilated_density(y, scale), atol=1e-8, rtol=0)


def test_both_ways_make_the_same_dilation():
    x = Uniform().sample((50,))
    one = SphereFlow(Dilation(2.0)).forward_and_log_det(x)
    other = ContinuousSphereFlow(ToPole(math.log(2.0)), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(one, other.forward_and_log_det(x), atol=1e-8, rtol=0)


def test_a_learned_continuous_flow_integrates_to_one():
    network = TimeMLP(3, hidden=(8, 8)).double()
    with torch.no_grad():
        network.layers[-1].weight.mul_(15)
    flow = ContinuousSphereFlow(network, method="rk4", steps=10)
    points, weights = quadrature()
    with torch.no_grad():
        log_prob = FlowDistribution(Uniform(), [flow]).log_prob(points)
    assert (log_prob + LOG_AREA).abs().max() > 0.3  # far from the uniform one
    # The error of ten steps, to the fourth power of the step.
    assert abs(float(weights @ log_prob.exp()) - 1) < 1e-3


def test_a_stereographic_flow_integrates_to_one():
    """The density of a coupling depends on the direction at the pole: the rule converges slowly."""
    coupling = AffineCoupling(2, hidden=(8,)).double()
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    flow = FlowDistribution(Uniform(), [SphereFlow(coupling)])
    errors = []
    for n in (24, 96):
        points, weights = quadrature(n)
        with torch.no_grad():
            errors.append(abs(float(weights @ flow.log_prob(points).exp()) - 1))
    assert errors[1] < 5e-3
    assert errors[1] < 0.5 * errors[0]


def test_the_log_determinant_is_that_of_the_tangent_map():
    """det(J^T J) on an orthonormal basis of the tangent plane."""
    network = TimeMLP(3, hidden=(8,)).double()
    flow = ContinuousSphereFlow(network, method="rk4", steps=60)
    x = Uniform().sample()
    basis = torch.linalg.svd(x[None]).Vh[1:].T
    jacobian = torch.autograd.functional.jacobian(flow.forward_value, x) @ basis
    expected = torch.linalg.slogdet(jacobian.T @ jacobian)[1] / 2
    torch.testing.assert_close(flow.forward_and_log_det(x)[1], expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_stereographic_projection_of_the_uniform_density(dim):
    """The plane density of uniform points is 2^D / (area (1 + |u|²)^D)."""
    flow = SphereFlow(Dilation(3.0))
    x = unit(torch.randn(20, dim + 1, dtype=torch.float64))
    u = x[:, :-1] / (1 - x[:, -1:])
    y, log_det = flow.forward_and_log_det(x)
    ratio = (1 + u.square().sum(-1)) / (1 + 9 * u.square().sum(-1))
    torch.testing.assert_close(log_det, dim * (3 * ratio).log(), atol=1e-10, rtol=0)
    torch.testing.assert_close(flow.inverse_and_log_det(y), (x, log_det), atol=1e-9, rtol=0)


def test_entropy_of_the_von_mises_fisher_distribution():
    """Its density seen through a flow: H = log Z - kappa (coth kappa - 1 / kappa)."""
    kappa = 2.0
    log_z = math.log(4 * math.pi * math.sinh(kappa) / kappa)
    entropy = log_z - kappa * (1 / math.tanh(kappa) - 1 / kappa)
    points, weights = quadrature()
    log_prob = kappa * points[:, 2] - log_z
    assert abs(float(weights @ log_prob.exp()) - 1) < 1e-10
    assert abs(float(weights @ (-log_prob * log_prob.exp())) - entropy) < 1e-10
    # A flow changes the entropy by the mean of its log-determinant.
    flow = ContinuousSphereFlow(ToPole(0.4), method="rk4", steps=20)
    y, log_det = flow.forward_and_log_det(points)
    pushed = log_prob - log_det
    back, same = flow.inverse_and_log_det(y)
    torch.testing.assert_close(kappa * back[:, 2] - log_z - same, pushed, atol=1e-6, rtol=0)
    image = flow.inverse_and_log_det(points)
    density = kappa * image[0][:, 2] - log_z - image[1]
    direct = float(weights @ (-density * density.exp()))
    moved = entropy + float(weights @ (log_det * log_prob.exp()))
    assert abs(direct - moved) < 1e-5


def test_samples_have_the_mean_of_the_density():
    flow = FlowDistribution(Uniform(), [SphereFlow(Dilation(2.0))])
    points, weights = quadrature()
    expected = (weights * dilated_density(points, 2.0).exp()) @ points
    assert_mean_close(flow.sample((10_000,)), expected)


@pytest.mark.parametrize(
    "make", [lambda: SphereFlow([]), lambda: ContinuousSphereFlow(ToPole(1.0))]
)
def test_points_off_the_sphere_are_refused(make):
    for method in ("forward_and_log_det", "inverse_and_log_det"):
        with pytest.raises(ValueError, match=r"unit norm.*divide by x.norm"):
            getattr(make(), method)(torch.tensor([[0.6, 0.8, 0.1]]))


def test_near_the_pole_the_projection_keeps_its_digits():
    angle = 1e-3
    x = torch.tensor([[math.sin(angle), 0.0, math.cos(angle)]])
    u = math.sin(angle) / (1 - math.cos(angle))
    _, log_det = SphereFlow(Dilation(2.0)).forward_and_log_det(unit(x))
    expected = 2 * math.log(2 * (1 + u**2) / (1 + 4 * u**2))
    assert abs(float(log_det) - expected) < 1e-5


def test_the_pole_has_no_image():
    """Neither has a point of which the distance squared is 0 in its precision."""
    flow = SphereFlow(Dilation(2.0))
    for offset in (0.0, 1e-30):
        points = torch.tensor([[offset, 0.0, 1.0], [1.0, 0.0, 0.0]])
        for method in (flow.forward_and_log_det, flow.inverse_and_log_det):
            with pytest.raises(ValueError, match=r"other than the pole .* got 1 there"):
                method(points)
    opposite, log_det = flow.forward_and_log_det(torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(opposite, torch.tensor([0.0, 0.0, -1.0]))
    assert log_det.item() == pytest.approx(2 * math.log(2))


def test_conditional_transforms_that_hide_their_context_are_refused():
    with pytest.raises(ValueError, match="tell their context_dim, got one of Pyro's"):
        SphereFlow([dist.transforms.conditional_affine_coupling(2, 3)])
