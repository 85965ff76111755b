"""Rational-quadratic splines: the formula against autograd, Pyro's splines, and its own limits."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions.transforms.spline import _monotonic_rational_spline

from pyrogen.transforms import SplineCoupling
from pyrogen.transforms._splines import Knots, bounded_knots, spline, spline_inverse


def random_knots(num_bins=6, batch=(40,), bound=3.0):
    raw = 0.7 * torch.randn(*batch, 3 * num_bins - 1, dtype=torch.float64)
    return bounded_knots(raw, bound)


def test_the_curve_is_that_of_pyros_quadratic_spline():
    knots = random_knots()
    x = 2.9 * (2 * torch.rand(40, dtype=torch.float64) - 1)
    y, log_derivative = spline(x, knots)
    expected, expected_log = _monotonic_rational_spline(
        x,
        knots.x.diff() / 6,
        knots.y.diff() / 6,
        knots.slope[..., 1:-1],
        bound=3.0,
        min_bin_width=0.0,
        min_bin_height=0.0,
        min_derivative=0.0,
    )
    torch.testing.assert_close(y, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(log_derivative, expected_log, atol=1e-5, rtol=0)


def test_it_passes_through_its_knots_with_their_slopes():
    knots = random_knots()
    for k in range(7):
        y, log_derivative = spline(knots.x[..., k], knots)
        torch.testing.assert_close(y, knots.y[..., k])
        torch.testing.assert_close(log_derivative.exp(), knots.slope[..., k])
        x, _ = spline_inverse(knots.y[..., k], knots)
        torch.testing.assert_close(x, knots.x[..., k])


def test_the_inverse_undoes_it_inside_and_in_the_tails():
    knots = random_knots(batch=(1000, 40))
    x = 3 * torch.randn(1000, 40, dtype=torch.float64)
    y, log_derivative = spline(x, knots)
    back, same = spline_inverse(y, knots)
    assert (x.abs() > 3).any()
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(same, log_derivative, atol=1e-7, rtol=0)


@pytest.mark.parametrize("map_", [spline, spline_inverse])
def test_gradients_in_value_and_knots(map_):
    knots = random_knots(num_bins=3, batch=(5,))
    inputs = [tensor.detach().requires_grad_() for tensor in knots]
    value = torch.tensor([-4.0, -1.2, 0.1, 1.7, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, *k: map_(v, Knots(*k)), (value, *inputs))


def test_zero_parameters_make_the_identity():
    x = torch.linspace(-5, 5, 101)
    for periodic in (False, True):
        knots = bounded_knots(torch.zeros(24 if periodic else 23), 3.0, periodic)
        y, log_derivative = spline(x, knots)
        torch.testing.assert_close(y, x, atol=1e-6, rtol=0)
        torch.testing.assert_close(log_derivative, torch.zeros(101), atol=1e-6, rtol=0)


def test_a_periodic_spline_has_one_slope_at_both_ends():
    knots = bounded_knots(torch.randn(5, 12), 3.0, periodic=True)
    assert knots.x.shape == (5, 5)
    assert torch.equal(knots.slope[:, 0], knots.slope[:, -1])
    assert not torch.allclose(knots.slope[:, 0], torch.ones(5), atol=0.01)


def test_extreme_parameters_stay_finite_with_their_gradients():
    raw = torch.tensor([-1e3, 0.0, 1e3]).repeat(8)[:23].requires_grad_()
    x = torch.linspace(-4, 4, 41)
    for map_ in (spline, spline_inverse):
        value, log_derivative = map_(x, bounded_knots(raw, 3.0))
        assert value.isfinite().all()
        assert (value.diff() > -1e-6).all()
        (gradient,) = torch.autograd.grad(value.sum() + log_derivative.sum(), raw)
        assert gradient.isfinite().all()


def test_steep_and_flat_knots_have_finite_gradients():
    """Slopes and secants of six orders of magnitude, which the library itself never goes beyond:
    neither form of the root may spoil the gradient where the other one is taken."""
    x = torch.tensor([-1.0, 0.0, 1.0]).expand(300, 3)
    y, slope = (10 ** (6 * torch.rand(2, 300, 3) - 3)).unbind()
    inputs = [tensor.clone().requires_grad_() for tensor in (x, y.cumsum(-1), slope)]
    place = torch.linspace(0, 1, 101).unsqueeze(-1)
    value = torch.lerp(inputs[1][:, 0].detach(), inputs[1][:, -1].detach(), place)
    back, log_derivative = spline_inverse(value, Knots(*inputs))
    for gradient in torch.autograd.grad(back.sum() + log_derivative.sum(), inputs):
        assert gradient.isfinite().all()


def test_a_coupling_bends_one_part_only():
    layer = SplineCoupling(4, bound=2.0)
    torch.nn.init.normal_(layer.network.layers[-1].weight)
    x = torch.tensor([[0.3, -0.4, 0.5, 9.0]])
    y, log_det = layer.forward_and_log_det(x)
    assert torch.equal(y[:, [0, 1, 3]], x[:, [0, 1, 3]])
    assert (y[:, 2] - x[:, 2]).abs() > 1e-3
    assert log_det.abs() > 1e-3


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="expected positive numbers, got 0 and 5"):
        SplineCoupling(4, num_bins=0)
    with pytest.raises(ValueError, match="expected positive numbers, got 8 and -1"):
        SplineCoupling(4, bound=-1.0)
    with pytest.raises(ValueError, match="even number to be halved"):
        SplineCoupling(3)
