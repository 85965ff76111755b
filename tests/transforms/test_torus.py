"""Flows on the torus: closed, smooth, and normalised."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import TorusFlow


def randomized(dim, scale=0.15, **options):
    flow = TorusFlow(dim, num_bins=5, hidden=(8,), **options).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return flow


def uniform(dim):
    bound = torch.full((dim,), math.pi, dtype=torch.float64)
    return dist.Uniform(-bound, bound).to_event(1)


def grid(n):
    """The trapezoid rule on the circle."""
    return (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / n) - math.pi


def test_it_starts_as_the_identity():
    x = uniform(3).sample((10,))
    y, log_det = TorusFlow(3).double().forward_and_log_det(x)
    torch.testing.assert_close(y, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(log_det, torch.zeros_like(log_det), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("dim", "scale", "n"), [(1, 0.5, 4000), (2, 0.15, 200)])
def test_a_density_integrates_to_one(dim, scale, n):
    """The density has a bounded second derivative, so the rule errs by O(1/n²) at most."""
    flow = FlowDistribution(uniform(dim), [randomized(dim, scale)])
    points = torch.cartesian_prod(*[grid(n)] * dim).reshape(-1, dim)
    with torch.no_grad():
        density = flow.log_prob(points).exp()
    assert density.max() / density.min() > 2  # far from the uniform one
    assert abs(float(density.sum() * (2 * math.pi / n) ** dim) - 1) < 5e-3


def test_value_and_slope_are_the_same_at_both_ends():
    flow = randomized(2)
    pi = math.pi
    ends = torch.tensor([[-pi, 0.3], [pi, 0.3], [0.3, -pi], [0.3, pi]], dtype=torch.float64)
    y, log_det = flow.forward_and_log_det(ends)
    for i in (0, 2):
        torch.testing.assert_close(log_det[i], log_det[i + 1], atol=1e-9, rtol=0)
        torch.testing.assert_close(y[i].cos(), y[i + 1].cos(), atol=1e-9, rtol=0)
        torch.testing.assert_close(y[i].sin(), y[i + 1].sin(), atol=1e-9, rtol=0)


def test_a_circle_is_covered_once():
    """The images of a full turn go around once, in order."""
    flow = randomized(1, num_layers=3)
    y = flow(grid(2000)[:, None])[:, 0].detach()
    steps = torch.remainder(y.roll(-1) - y, 2 * math.pi)
    assert float(steps.sum()) == pytest.approx(2 * math.pi, abs=1e-9)
    assert steps.max() < math.pi


def test_the_phase_of_no_layer_is_special():
    """With a turn, a density peaked at the seam is as good as one elsewhere."""
    flow = TorusFlow(1, num_bins=4, num_layers=1).double()
    with torch.no_grad():
        flow.layers[0].free[0, -1] = math.pi / 2
    y = flow(torch.tensor([[3.0]], dtype=torch.float64)).detach()
    assert float(y) == pytest.approx(3.0 + math.pi / 2 - 2 * math.pi)


def test_all_angles_are_changed_and_mixed():
    x = uniform(3).sample()
    jacobian = torch.autograd.functional.jacobian(randomized(3), x)
    assert ((jacobian - torch.eye(3)).abs().sum(1) > 1e-3).all()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: TorusFlow(0), "expected positive integers"),
        (lambda: TorusFlow(2)(torch.zeros(4, 3)), r"expected angles of shape \[\*, 2\]"),
        (lambda: TorusFlow(2)(torch.full((4, 2), 3.2)), "between -pi and pi"),
        (
            lambda: TorusFlow(2).forward_and_log_det(torch.zeros(2), torch.zeros(3)),
            "context of size 0, got size 3",
        ),
    ],
)
def test_bad_input_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
