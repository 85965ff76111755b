"""The logit of [0, 1], with finite images of the ends."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import Logit


@pytest.mark.parametrize("boundary", [1e-6, 0.05])
def test_values_and_derivative_in_closed_form(boundary):
    transform = Logit(boundary)
    x = torch.linspace(0, 1, 101, dtype=torch.float64).requires_grad_()
    y, log_det = transform.forward_and_log_det(x)
    torch.testing.assert_close(y, torch.logit(boundary + (1 - 2 * boundary) * x))
    (derivative,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    torch.testing.assert_close(log_det, derivative.log(), rtol=0, atol=1e-9)
    back, same = transform.inverse_and_log_det(y)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(same, log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("boundary", [1e-6, 0.05])
def test_the_ends_are_finite_in_single_precision(boundary):
    x = torch.tensor([0.0, 1.0])
    y, log_det = Logit(boundary).forward_and_log_det(x)
    expected = math.log((1 - boundary) / boundary)
    torch.testing.assert_close(y, torch.tensor([-expected, expected]), rtol=1e-5, atol=0)
    assert log_det.isfinite().all()
    torch.testing.assert_close(Logit(boundary).inv(y), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("boundary", [0.0, 1e-6, 0.05, 0.3])
def test_what_far_values_are_mapped_to_can_be_mapped_back(boundary, dtype):
    """Also where the sigmoid rounds to 0 or 1."""
    y = torch.linspace(-150, 150, 3001, dtype=dtype)
    transform = Logit(boundary)
    x, log_det = transform.inverse_and_log_det(y)
    assert transform.domain.check(x).all()
    back, back_log_det = transform.forward_and_log_det(x)
    # Where neither end is near, all digits are there; beyond, the value is a large one still.
    near = y.abs() < 6
    tolerance = 1e4 * torch.finfo(dtype).eps
    torch.testing.assert_close(back[near], y[near], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(log_det[near], back_log_det[near], rtol=tolerance, atol=tolerance)
    furthest = -math.log(8 * torch.finfo(dtype).eps)
    assert back.isfinite().all()
    assert back_log_det.isfinite().all()
    assert (back[y > furthest + 1] > furthest - 1).all()
    assert (back[y < -furthest - 1] < -furthest + 1).all()
    # The density of a far value itself is exact: sigmoid'(y) ~ exp(-|y|).
    far = y.abs() > 40
    expected = math.log(1 - 2 * boundary) + y[far].abs()
    torch.testing.assert_close(log_det[far], expected)


def test_a_uniform_law_is_that_of_a_logistic_variable():
    logistic = FlowDistribution(dist.Uniform(torch.zeros(3), 1.0).to_event(1), [Logit(0.0)])
    y = torch.randn(5, 3)
    exact = (-y - 2 * torch.nn.functional.softplus(-y)).sum(-1)
    torch.testing.assert_close(logistic.log_prob(y), exact, rtol=1e-5, atol=1e-5)


def test_the_domain_is_a_little_larger_than_the_unit_interval():
    domain = Logit(0.05).domain
    assert domain.check(torch.tensor([-0.05, 0.0, 1.0, 1.05])).all()
    assert not domain.check(torch.tensor([-0.06, 1.06])).any()
    for boundary in (-0.1, 0.5):
        with pytest.raises(ValueError, match="boundary: expected a number"):
            Logit(boundary)
