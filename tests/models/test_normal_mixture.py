"""The likelihood of a mixture against its formula, and in the networks that put it out."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch.nn.functional import softplus

from pyrogen.models import SDEBNN, BayesianNetwork, NormalMixture
from tests.statistics import assert_follows


@pytest.mark.parametrize("num_components", [1, 3])
def test_density_and_draws(num_components):
    parameters = torch.randn(2, 3 * num_components, dtype=torch.float64)
    law = NormalMixture(num_components, min_scale=0.01)(parameters, event_dim=1)
    logits, loc, raw = parameters.chunk(3, -1)
    scale = 0.01 + softplus(raw)
    y = torch.randn(7, 2, dtype=torch.float64)
    density = (logits.softmax(-1) * dist.Normal(loc, scale).log_prob(y.unsqueeze(-1)).exp()).sum(-1)
    torch.testing.assert_close(law.log_prob(y), density.log().sum(-1))
    torch.testing.assert_close(law.mean, (logits.softmax(-1) * loc).sum(-1))
    draws = law.sample((5000,))
    for i in range(2):  # the elements are independent
        one = NormalMixture(num_components, min_scale=0.01)(parameters[i], event_dim=0)
        assert_follows(draws[:, i], one.log_prob(draws[:, i]))


@pytest.mark.parametrize("make", [BayesianNetwork, SDEBNN])
def test_networks_put_out_its_parameters(make):
    model = make(2, out_features=4, likelihood=NormalMixture(3))
    x = torch.randn(5, 2)
    assert model(x).shape == (5, 4)
    assert torch.equal(model(x, torch.ones(5, 4)), torch.ones(5, 4))
    assert model.outputs.size == 4 * 9


def test_refusals():
    with pytest.raises(ValueError, match="num_components: expected a positive"):
        NormalMixture(0)
    with pytest.raises(ValueError, match="min_scale: expected a positive"):
        NormalMixture(1, min_scale=0.0)
    with pytest.raises(ValueError, match="a last dimension of 3 \\* 2"):
        NormalMixture(2)(torch.zeros(5, 3), event_dim=0)
    with pytest.raises(ValueError, match="expected one for classes"):
        BayesianNetwork(2, num_classes=3, likelihood=NormalMixture(1))
