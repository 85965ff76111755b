"""ActNorm: after initialisation a batch is standardised, and its density is the fitted normal's."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch

from pyrogen.distributions import FlowDistribution
from pyrogen.transforms import ActNorm, AdditiveCoupling, initialize


def test_initialised_it_is_the_normal_fitted_by_maximum_likelihood():
    data = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(400, 2)
    layer = ActNorm(2)
    layer.initialize(data)
    flow = FlowDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [layer])
    fitted = dist.Normal(data.mean(0), data.std(0, correction=0)).to_event(1)
    torch.testing.assert_close(flow.log_prob(data), fitted.log_prob(data))
    # So its gradient is zero there.
    flow.log_prob(data).mean().backward()
    for parameter in layer.parameters():
        torch.testing.assert_close(parameter.grad, torch.zeros(2), atol=1e-4, rtol=0)


def test_channels_of_images_are_standardised_over_positions_too():
    data = 4 + 3 * torch.randn(10, 2, 5, 6)
    latent = ActNorm(2, event_dim=3).initialize(data)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(latent.std((0, 2, 3), correction=0), torch.ones(2))


def test_nothing_happens_before_it_is_asked_for():
    layer, data = ActNorm(2), torch.randn(10, 2)
    assert torch.equal(layer(data), data)
    assert torch.equal(layer.inv(data), data)


def test_initialize_passes_the_context_to_conditional_layers():
    coupling = AdditiveCoupling(2, context_dim=3)
    torch.nn.init.normal_(coupling.network.layers[-1].weight)
    layers = [ActNorm(2), coupling]
    data, context = torch.randn(50, 2), torch.randn(50, 3)
    latent = initialize(layers, data, context)
    torch.testing.assert_close(latent.std(0, correction=0), torch.ones(2))
    torch.testing.assert_close(layers[1].condition(context)(layers[0](latent)), data)


def test_data_that_do_not_vary_are_refused():
    data = torch.randn(10, 3)
    data[:, 1] = 5.0
    with pytest.raises(ValueError, match=r"channels \[1\]; add noise"):
        ActNorm(3).initialize(data)
    data[:, 2] = torch.nan
    with pytest.raises(ValueError, match=r"channels \[1, 2\]"):
        ActNorm(3).initialize(data)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected shape \[\*, 3, H, W\], got \[3, 4\]"):
        ActNorm(3, event_dim=3)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"expected shape \[\*, 3\], got \[4\]"):
        ActNorm(3)(torch.zeros(4))
    with pytest.raises(ValueError, match="expected positive integers"):
        ActNorm(0)
