"""Integer couplings permute Z^d: exact on boxes that can be enumerated."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import IntegerCoupling


def couplings(dim=2):
    layers = [IntegerCoupling(dim, swap=swap, hidden=(16,)) for swap in (False, True, False)]
    for layer in layers:
        nn.init.normal_(layer.network.layers[-1].weight)
    return layers


def box(radius, dim=2):
    points = itertools.product(range(-radius, radius + 1), repeat=dim)
    return torch.tensor(list(points), dtype=torch.float32)


def test_different_integers_have_different_images_and_all_come_back():
    layers, x = couplings(), box(20)
    y = x
    for layer in layers:
        y = layer(y)
    assert torch.equal(y, y.round())
    assert len(y.unique(dim=0)) == len(x)
    assert not torch.equal(y, x)
    for layer in reversed(layers):
        y = layer.inv(y)
    assert torch.equal(y, x)


def test_probabilities_sum_to_one_over_a_finite_box():
    """A base on a box becomes a distribution on the image of the box, and nowhere else."""
    probs = torch.rand(7, 7)
    probs = probs / probs.sum()
    radius = 3

    class OnBox(dist.TorchDistribution):
        arg_constraints = {}
        support = dist.constraints.independent(dist.constraints.integer, 1)

        def log_prob(self, value):
            index = (value + radius).long().clamp(0, 6)
            inside = (value.abs() <= radius).all(-1)
            return torch.where(inside, probs[index[..., 0], index[..., 1]].log(), -torch.inf)

    flow = FlowDistribution(OnBox(event_shape=(2,)), couplings())
    x = box(radius)
    y = x
    for layer in flow.transforms:
        y = layer(y)
    wide = box(int(y.abs().max()) + 2)
    log_prob = flow.log_prob(wide)
    torch.testing.assert_close(log_prob.exp().sum(), torch.tensor(1.0))
    assert int(log_prob.isfinite().sum()) == 49
    torch.testing.assert_close(flow.log_prob(y), OnBox(event_shape=(2,)).log_prob(x))


def test_large_integers_are_exact():
    (layer, *_), x = couplings(), torch.randint(-(2**22), 2**22, (100, 2)).float()
    assert torch.equal(layer.inv(layer(x)), x)


def test_the_gradient_of_rounding_is_that_of_the_identity():
    layer = IntegerCoupling(2, nn.Linear(1, 1))
    x = torch.tensor([[2.0, 5.0], [-3.0, 1.0]])
    weight = torch.tensor([[0.0, 1.5], [0.0, -2.0]])
    (layer(x) * weight).sum().backward()
    # d/dw of w x_a + b, weighted
    torch.testing.assert_close(layer.network.weight.grad, torch.tensor([[1.5 * 2 + 2.0 * 3]]))
    torch.testing.assert_close(layer.network.bias.grad, torch.tensor([-0.5]))


def test_the_scale_is_undone():
    plain, scaled = (IntegerCoupling(2, nn.Linear(1, 1, bias=False), scale=s) for s in (1.0, 64.0))
    scaled.network.load_state_dict(plain.network.state_dict())
    x = box(10)
    assert torch.equal(plain(x), scaled(x))  # a linear network commutes with the scale


def test_what_is_no_integer_is_refused():
    layer = IntegerCoupling(2)
    for bad in (torch.tensor([0.0, 0.5]), torch.tensor([0.5, 0.0]), torch.tensor([0.0, torch.nan])):
        with pytest.raises(ValueError, match="expected integers"):
            layer(bad)
    with pyro.validation_enabled(False):
        layer(torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match="even number to be halved, got 3"):
        IntegerCoupling(3)
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        IntegerCoupling(2, scale=0.0)
