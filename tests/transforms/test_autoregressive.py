"""The masked autoregressive flow: exact where it is Gaussian, sampled and differentiated like the
loop over dimensions that it replaces."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import nn

from pyrogen.distributions import FlowDistribution
from pyrogen.graph import Captured
from pyrogen.transforms import Inverse, MaskedAutoregressive

DIM = 6


def flow(**options):
    network = AutoRegressiveNN(DIM, [20], nonlinearity=nn.Tanh(), **options)
    return MaskedAutoregressive(network).double()


def one_by_one(transform, x):
    """Element after element in the network's order, all of it differentiable."""
    elements = list(torch.zeros_like(x).unbind(-1))
    for i in transform.network.permutation.tolist():
        loc, log_scale = transform._predict(torch.stack(elements, -1), None)
        elements[i] = loc[..., i] + log_scale[..., i].exp() * x[..., i]
    return torch.stack(elements, -1)


def count_calls(transform):
    calls = []
    transform.network.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_linear_flow_is_the_gaussian_it_must_be():
    """With shifts linear in the elements before and constant scales, y = (I - L)^-1 (b + S x)."""
    transform = flow(skip_connections=True, permutation=torch.arange(DIM))
    with torch.no_grad():
        network = transform.network
        network.layers[-1].weight.zero_()
        raw = network.layers[-1].bias
        raw.normal_()
        network.skip_layer.weight[DIM:] = 0.0
        loc, log_scale = transform._predict(torch.zeros(DIM, dtype=torch.float64), None)
        lower = network.skip_layer.weight[:DIM] * network.skip_layer.mask[:DIM]
        inverse = torch.linalg.inv(torch.eye(DIM) - lower)
        factor = inverse * log_scale.exp()
        gaussian = dist.MultivariateNormal(inverse @ loc, factor @ factor.T)
    assert lower.abs().sum() > 0.1
    base = dist.Normal(torch.zeros(DIM, dtype=torch.float64), 1.0).to_event(1)
    density = FlowDistribution(base, [transform])
    y = density.sample((100,))
    torch.testing.assert_close(density.log_prob(y), gaussian.log_prob(y))


def test_draws_are_those_of_the_loop():
    transform, x = flow(), torch.randn(20, DIM, dtype=torch.float64)
    torch.testing.assert_close(transform(x), one_by_one(transform, x))


def test_gradients_of_draws_are_those_of_the_loop():
    transform = flow()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(3.0)
    x = torch.randn(20, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, DIM, dtype=torch.float64)
    targets = [x, *transform.parameters()]

    def objective(y):
        return (weight * y.sin()).sum() + transform._predict(y, None)[1].sum()

    y, log_det = transform.forward_and_log_det(x)
    ours = torch.autograd.grad((weight * y.sin()).sum() + log_det.sum(), targets)
    expected = torch.autograd.grad(objective(one_by_one(transform, x)), targets)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_in_the_context():
    network = ConditionalAutoRegressiveNN(3, 2, [10], nonlinearity=nn.Tanh())
    transform = MaskedAutoregressive(network).double()
    x = torch.randn(3, dtype=torch.float64)
    context = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: transform.forward_and_log_det(x, c), (context,))


def test_no_more_rounds_than_elements_and_fewer_where_nothing_changes():
    transform, x = flow(), torch.randn(20, DIM, dtype=torch.float64)
    calls = count_calls(transform)
    with torch.no_grad():
        transform(x)
    assert len(calls) <= DIM
    with torch.no_grad():
        for layer in transform.network.layers:
            layer.weight.zero_()  # nothing depends on anything: right after one round
    calls.clear()
    with torch.no_grad():
        transform(x)
    assert len(calls) == 2


def test_the_density_takes_one_pass_and_so_do_draws_of_the_inverse():
    transform, x = flow(), torch.randn(20, DIM, dtype=torch.float64)
    calls = count_calls(transform)
    base = dist.Normal(torch.zeros(DIM, dtype=torch.float64), 1.0).to_event(1)
    FlowDistribution(base, [transform]).log_prob(x)
    assert len(calls) == 1
    guide = FlowDistribution(base, [Inverse(transform)])
    guide.log_prob(guide.rsample((5,)))
    assert len(calls) == 2


def test_large_weights_neither_overflow_nor_hinder_the_inverse():
    """A round sees wrong elements, which must not become infinite: zero times that is NaN."""
    transform = flow()
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.mul_(20.0)
    x = torch.randn(50, DIM, dtype=torch.float64)
    y = transform(x)
    assert y.isfinite().all()
    torch.testing.assert_close(y, one_by_one(transform, x))


def test_the_gradient_can_be_captured():
    transform, x = flow(), torch.randn(4, DIM, dtype=torch.float64)

    def loss(x):
        y, log_det = transform.forward_and_log_det(x)
        return y.square().sum() - log_det.sum()

    value, leaves, gradients = Captured(loss, compile=False).value_and_grad(x)
    expected = loss(x)
    torch.testing.assert_close(value, expected.detach())
    for one, other in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_draws_can_be_vectorised_and_differentiated_by_torch_func(context_dim):
    transform, context = flow(), None
    if context_dim:
        network = ConditionalAutoRegressiveNN(DIM, context_dim, [20], nonlinearity=nn.Tanh())
        transform = MaskedAutoregressive(network).double()
        context = torch.randn(5, context_dim, dtype=torch.float64)
    x = torch.randn(5, DIM, dtype=torch.float64)

    def total(x, context):
        y, log_det = transform.forward_and_log_det(x, context)
        return y.square().sum() + log_det.sum()

    inputs = [x.clone().requires_grad_()]
    inputs += [] if context is None else [context.clone().requires_grad_()]
    padded = (*inputs, None)[:2]
    expected = torch.autograd.grad(total(*padded), inputs)
    argnums = tuple(range(len(inputs)))
    axes = (0, None if context is None else 0)
    found = torch.func.vmap(torch.func.grad(total, argnums), axes)(x, context)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_second_derivative_through_draws_is_refused():
    transform = flow()
    x = torch.randn(DIM, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(transform(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_other_networks_are_refused():
    with pytest.raises(TypeError, match=r"expected pyro\.nn\.AutoRegressiveNN .* got Linear"):
        MaskedAutoregressive(nn.Linear(2, 4))
    with pytest.raises(ValueError, match=r"expected param_dims=\[1, 1\]"):
        MaskedAutoregressive(AutoRegressiveNN(2, [4], param_dims=[3]))
    with pytest.raises(ValueError, match=r"expected input of shape \[\*, 6\]"):
        flow()(torch.zeros(5, dtype=torch.float64))
