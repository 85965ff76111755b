"""Additive coupling and diagonal scaling: with linear networks the flow is a Gaussian."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import AdditiveCoupling, DiagonalScaling


def test_linear_nice_is_the_gaussian_it_must_be():
    layers = [
        AdditiveCoupling(4, nn.Linear(2, 2)),
        AdditiveCoupling(4, nn.Linear(2, 2), swap=True),
        DiagonalScaling(4),
    ]
    nn.init.normal_(layers[-1].log_scale)
    flow = FlowDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), layers)

    def image(x):
        for layer in layers:
            x = layer(x)
        return x

    loc = image(torch.zeros(4))
    matrix = (image(torch.eye(4)) - loc).T
    expected = dist.MultivariateNormal(loc, matrix @ matrix.T)
    y = flow.sample((50,))
    torch.testing.assert_close(flow.log_prob(y), expected.log_prob(y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("swap", [False, True])
def test_one_part_is_kept(swap):
    layer = AdditiveCoupling(5, nn.Linear(3 if swap else 2, 2 if swap else 3), split=2, swap=swap)
    x = torch.randn(7, 5)
    changed = (layer(x) != x).any(0)
    assert changed.tolist() == [swap, swap, not swap, not swap, not swap]


def test_a_context_stands_at_every_position():
    layer = AdditiveCoupling((2, 2, 2), nn.Conv2d(3, 1, 1, bias=False), context_dim=2)
    x, context = torch.zeros(5, 2, 2, 2), torch.randn(5, 2)
    weight = layer.network.weight[0, 1:, 0, 0]
    expected = (context @ weight).reshape(5, 1, 1).expand(5, 2, 2)
    torch.testing.assert_close(layer.condition(context)(x)[:, 1], expected)


def test_the_default_network_begins_with_the_identity():
    x = torch.randn(3, 4)
    assert torch.equal(AdditiveCoupling(4)(x), x)


def test_an_odd_size_is_refused():
    with pytest.raises(ValueError, match=r"even number to be halved, got 5; pass split="):
        AdditiveCoupling(5)
    with pytest.raises(ValueError, match="expected an integer from 1 to 4, got 5"):
        AdditiveCoupling(5, split=5)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 4\], got \[3, 5\]"):
        AdditiveCoupling(4)(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"maps \[3, 2\] to \[3, 2\], got \[3, 7\]"):
        AdditiveCoupling(4, nn.Linear(2, 7))(torch.zeros(3, 4))
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got int"):
        AdditiveCoupling(4, 3)
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 2\]"):
        DiagonalScaling(2)(torch.zeros(3))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(1, 7),
    split=st.integers(-1, 8) | st.none(),
    rest=st.lists(st.integers(1, 3), max_size=2),
    swap=st.booleans(),
    context_dim=st.integers(0, 2),
    batch=st.lists(st.integers(1, 3), max_size=2),
)
def test_any_division_is_a_bijection_or_is_refused(size, split, rest, swap, context_dim, batch):
    shape = (size, *rest)
    possible = 0 < split < size if split is not None else size % 2 == 0
    if not possible:
        message = r"an even number|an integer from|at least 2 elements"
        with pytest.raises(ValueError, match=message):
            AdditiveCoupling(shape, split=split, swap=swap, context_dim=context_dim)
        return
    layer = AdditiveCoupling(shape, None, split, swap, context_dim, hidden=())
    nn.init.normal_(layer.network.layers[-1].weight)
    x = torch.randn(*batch, *shape)
    context = torch.randn(*batch, context_dim) if context_dim else None
    y, log_det = layer.forward_and_log_det(x, context)
    assert y.shape == x.shape
    assert log_det.shape == torch.Size(batch)
    torch.testing.assert_close(layer.inverse_and_log_det(y, context)[0], x, atol=1e-5, rtol=1e-5)
