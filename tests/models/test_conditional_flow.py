"""Conditional flows against a regression whose likelihood is known."""

from __future__ import annotations

import copy
import pickle

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.distributions import AffineTransform

from pyrogen.checks import check_pair
from pyrogen.guides import Empty, UniformDequantization
from pyrogen.models import ConditionalFlow, glow
from pyrogen.nn import MLP
from pyrogen.transforms import ActNorm, AffineCoupling
from tests.statistics import assert_mean_close


class Regression(nn.Module):
    """A normal base whose mean is linear in the context."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 0.0], [0.5, -1.0], [0.0, 2.0]]))

    def forward(self, context):
        return dist.Normal(context @ self.weight, 0.5).to_event(1)


def model():
    return ConditionalFlow(Regression(), [AffineTransform(1.0, 2.0)])


def test_the_density_is_that_of_the_regression():
    context, x = torch.randn(4, 3), torch.randn(4, 2)
    regression = model()
    expected = dist.Normal(1 + 2 * context @ regression.base.weight, 1.0).log_prob(x).sum(-1)
    torch.testing.assert_close(regression.distribution(context).log_prob(x), expected)
    loss = Trace_ELBO().loss(regression, Empty(), context, x)
    assert loss == pytest.approx(-expected.sum().item(), rel=1e-5)


def test_one_draw_for_each_context():
    regression, context = model(), torch.randn(1, 3).expand(20_000, 3)
    draws = regression(context)
    assert draws.shape == (20_000, 2)
    assert_mean_close(draws, 1 + 2 * context[0] @ regression.base.weight)


def test_svi_finds_the_least_squares():
    regression = model()
    context = torch.randn(100, 3)
    x = torch.randn(100, 2) + context[:, :2]
    svi = SVI(regression, Empty(), Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(200):
        svi.step(context, x)
    exact = torch.linalg.lstsq(context, (x - 1) / 2).solution
    torch.testing.assert_close(regression.base.weight.detach(), exact, rtol=0, atol=1e-3)


def test_an_encoder_stands_before_base_and_transforms():
    encoder = MLP((2, 2), 3, hidden=(8,))
    flow = ConditionalFlow(2, [AffineCoupling(2, context_dim=3)], encoder=encoder)
    context, x = torch.randn(4, 2, 2), torch.randn(4, 2)
    direct = ConditionalFlow(2, list(flow.transforms))
    torch.testing.assert_close(
        flow.distribution(context).log_prob(x), direct.distribution(encoder(context)).log_prob(x)
    )
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    Trace_ELBO().loss_and_grads(flow, Empty(), context, x)
    assert all(p.grad.any() for p in flow.parameters())
    for clone in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(
            clone.distribution(context).log_prob(x), flow.distribution(context).log_prob(x)
        )
    assert flow.double()(context.double()).dtype == torch.float64


def test_importance_weights_average_to_the_probability_of_levels_given_the_context():
    flow = ConditionalFlow(Regression(), [AffineTransform(0.5, 0.2)], levels=5).double()
    context = torch.tensor([[0.2, -0.4, 0.3], [1.0, 0.5, -0.2]], dtype=torch.float64)
    x = torch.tensor([[2, 1], [3, 2]])
    flows = 10_000
    many = context.repeat(flows, 1), x.repeat(flows, 1)
    model_trace, guide_trace = check_pair(flow, UniformDequantization(5, 2).double(), many)
    log_weight = (
        model_trace.nodes["v"]["fn"].log_prob(model_trace.nodes["v"]["value"])
        + model_trace.nodes["x"]["fn"].log_prob(many[1])
        - guide_trace.nodes["v"]["fn"].log_prob(guide_trace.nodes["v"]["value"])
    )
    law = dist.Normal(0.5 + 0.2 * context @ flow.base.weight, 0.1)
    expected = (law.cdf((x + 1) / 5) - law.cdf(x / 5)).prod(-1)
    assert_mean_close(log_weight.exp().reshape(flows, 2).detach(), expected.detach())
    # Draws are levels too, and a draw for each context is scored in that context.
    draws = flow(context.expand(3, 2, 3))
    assert draws.dtype == torch.int64
    assert draws.shape == (3, 2, 2)


def test_initialize_standardises_data_as_each_context_sees_them():
    coupling = AffineCoupling(2, context_dim=3)
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    encoder = MLP(4, 3, hidden=(8,))
    flow = ConditionalFlow(2, [ActNorm(2), coupling], encoder=encoder)
    context, x = torch.randn(100, 4), 3 + torch.randn(100, 2)
    flow.initialize(context, x)
    latent, _ = coupling.inverse_and_log_det(x, encoder(context))
    norm = next(iter(flow.transforms))
    torch.testing.assert_close(norm.loc, latent.mean(0))
    torch.testing.assert_close(norm.log_scale.exp(), latent.std(0, correction=0))
    with pytest.raises(ValueError, match="as many data as contexts, 100, got 99"):
        flow.initialize(context, x[1:])
    images = glow((1, 4, 4), 1, 1, 8, context_dim=3, levels=5, boundary=0.01)
    context, x = torch.randn(64, 3), torch.randint(5, (64, 1, 4, 4))
    guide = UniformDequantization(5, (1, 4, 4))
    before = Trace_ELBO().loss(images, guide, context, data=x)
    images.initialize(context, x)
    assert Trace_ELBO().loss(images, guide, context, data=x) < before - 64


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"at least one that takes a context.*models\.Flow"):
        ConditionalFlow(2, [AffineTransform(0.0, 1.0)])
    with pytest.raises(TypeError, match=r"encoder: expected a torch\.nn.Module, got str"):
        ConditionalFlow(2, [AffineCoupling(2, context_dim=3)], encoder="mlp")
    flow = ConditionalFlow(2, [AffineCoupling(2, context_dim=3)])
    with pytest.raises(ValueError, match=r"expected a context of shape \[\*, 3\], got \[5, 4\]"):
        flow(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="as many data as contexts, 5, got 4"):
        flow(torch.zeros(5, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="context: expected finite values"):
        flow(torch.full((5, 3), torch.nan))
    with pytest.raises(ValueError, match=r"data: expected shape \[\*, 2\]"):
        flow(torch.zeros(5, 3), torch.zeros(5, 3))
    levels = ConditionalFlow(2, [AffineCoupling(2, context_dim=3)], levels=4)
    with pytest.raises(ValueError, match=r"levels 0\.\.3, got values from 0 to 4"):
        levels(torch.zeros(2, 3), torch.tensor([[0, 1], [2, 4]]))
    with pytest.raises(ValueError, match="levels: expected an integer above 1 or None, got 1"):
        ConditionalFlow(2, [AffineCoupling(2, context_dim=3)], levels=1)
