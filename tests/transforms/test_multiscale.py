"""Squeeze, split and their composition, against what they do by hand."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.nn import MLP
from pyrogen.transforms import ActNorm, AdditiveCoupling, MultiScale, Split, Squeeze


def test_squeeze_takes_blocks_of_positions():
    image = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    squeezed = Squeeze()(image)
    for c in range(2):
        for i in range(2):
            for j in range(2):
                assert torch.equal(squeezed[4 * c + 2 * i + j], image[c, i::2, j::2])


@settings(max_examples=40, deadline=None)
@given(
    factor=st.integers(1, 3),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_any_shape_is_squeezed_or_is_refused(factor, shape):
    squeeze, x = Squeeze(factor), torch.randn(shape)
    if len(shape) < 3 or shape[-1] % factor or shape[-2] % factor:
        with pytest.raises(ValueError, match="H and W divisible"):
            squeeze(x)
        return
    y = squeeze(x)
    assert y.shape == squeeze.forward_shape(x.shape)
    assert x.shape == squeeze.inverse_shape(y.shape)
    assert torch.equal(squeeze.inv(y), x)


def test_squeeze_knows_its_shapes():
    squeeze = Squeeze(3)
    assert squeeze.forward_shape((5, 2, 6, 9)) == (5, 18, 2, 3)
    assert squeeze.inverse_shape((5, 18, 2, 3)) == (5, 2, 6, 9)
    with pytest.raises(ValueError, match="H and W divisible by 2, got"):
        Squeeze()(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="C divisible by 4, got"):
        Squeeze().inv(torch.zeros(6, 2, 2))


def test_a_split_is_a_conditional_normal_for_what_it_splits_off():
    """The learned prior: p(h) N(e; mean(h), scale(h)), by chain rule."""
    split = Split(4, MLP(2, (2, 2), hidden=()))
    flow = FlowDistribution(dist.Normal(torch.zeros(4), 1.0).to_event(1), [split])
    y = torch.randn(6, 4)
    h, e = y.chunk(2, dim=-1)
    loc, log_scale = split.network(h).unbind(-1)
    expected = dist.Normal(0.0, 1.0).log_prob(h) + dist.Normal(loc, log_scale.exp()).log_prob(e)
    torch.testing.assert_close(flow.log_prob(y), expected.sum(-1))


def test_levels_and_splits_by_hand():
    shapes = [(4, 2, 2), (8, 1, 1)]
    couplings = [AdditiveCoupling(shape, hidden=(8,)) for shape in shapes]
    for coupling in couplings:
        nn.init.normal_(coupling.network.layers[-1].weight)
    split = Split((4, 2, 2), MLP((2, 2, 2), (2, 2, 2, 2), hidden=()))
    flow = MultiScale((1, 4, 4), [[c, Squeeze().inv] for c in couplings], [split])
    assert flow.level_shapes == shapes
    data = torch.randn(5, 1, 4, 4)

    latent, log_det = flow.inverse_and_log_det(data)
    h = couplings[0].inv(Squeeze()(data))
    h, split_log_det = split.inverse_and_log_det(h)
    deep = couplings[1].inv(Squeeze()(h[:, :2]))
    torch.testing.assert_close(latent, torch.cat([h[:, 2:].flatten(1), deep.flatten(1)], dim=-1))
    torch.testing.assert_close(log_det, split_log_det)
    torch.testing.assert_close(flow(latent), data, atol=1e-5, rtol=1e-5)


def test_it_makes_images_of_vectors_in_a_distribution():
    flow = MultiScale((1, 4, 4), [[ActNorm(4, event_dim=3), Squeeze().inv], []])
    density = FlowDistribution(dist.Normal(torch.zeros(16), 1.0).to_event(1), [flow])
    assert density.event_shape == (1, 4, 4)
    assert density.expand((3,)).sample((2,)).shape == (2, 3, 1, 4, 4)
    image = density.sample()
    expected = dist.Normal(0.0, 1.0).log_prob(image).sum()  # all it does is permute
    torch.testing.assert_close(density.log_prob(image), expected)


def test_initialisation_reaches_every_level():
    norms = [ActNorm(4, event_dim=3), ActNorm(8, event_dim=3)]
    flow = MultiScale((1, 4, 4), [[norm, Squeeze().inv] for norm in norms])
    latent = flow.initialize(5 + 3 * torch.randn(200, 1, 4, 4))
    for piece in latent.split([8, 8], dim=-1):
        torch.testing.assert_close(piece.mean(), torch.zeros(()), atol=1e-4, rtol=0)
        torch.testing.assert_close(piece.std(correction=0), torch.ones(()), atol=1e-4, rtol=0)


def test_impossible_levels_are_refused():
    with pytest.raises(ValueError, match="at least one, got none"):
        MultiScale((1, 4, 4), [])
    with pytest.raises(ValueError, match=r"even first dimension to split after level 0.*\[1, 4, 4"):
        MultiScale((1, 4, 4), [[], []])
    with pytest.raises(ValueError, match=r"C divisible by 4|H and W divisible"):
        MultiScale((1, 3, 3), [[Squeeze().inv]])
    with pytest.raises(ValueError, match=r"splits: expected events of shapes \[\(2,\)\]"):
        MultiScale(2, [[], []], [Split(4)])
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 16\]"):
        MultiScale((1, 4, 4), [[]])(torch.zeros(15))
