"""The flows by name: normalised densities, every parameter trained, one interface."""

from __future__ import annotations

import copy

import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam

from pyrogen.guides import Empty, UniformDequantization
from pyrogen.models import ConditionalFlow, Flow, ffjord, glow, iaf, maf, nice, nsf, real_nvp
from pyrogen.transforms import SplineCoupling

RK4 = {"method": "rk4", "steps": 6}
CONTEXT = 3
BUILDERS = {
    "nice": lambda dim, **o: nice(dim, hidden=(16,), **o),
    "real_nvp": lambda dim, **o: real_nvp(dim, num_layers=2, hidden=(16,), **o),
    "nsf": lambda dim, **o: nsf(dim, num_layers=2, hidden=(16,), **o),
    "maf": lambda dim, **o: maf(dim, num_layers=2, hidden=(16,), **o),
    "iaf": lambda dim, **o: iaf(dim, num_layers=2, hidden=(16,), **o),
    "ffjord": lambda dim, **o: ffjord(dim, hidden=(16,), solver=RK4, **o),
}
builders = pytest.mark.parametrize("make", BUILDERS.values(), ids=BUILDERS.keys())


def perturbed(model, size=None):
    """Away from the identity that a flow starts as; less where many parameters act together."""
    splines = any(isinstance(part, SplineCoupling) for part in model.transforms)
    size = (0.05 if splines else 0.15) if size is None else size
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def total_probability(log_prob, reach=9.0, points=300):
    """The integral over a square by the midpoint rule."""
    edges = torch.linspace(-reach, reach, points + 1, dtype=torch.float64)
    middle = (edges[1:] + edges[:-1]) / 2
    grid = torch.cartesian_prod(middle, middle)
    return (log_prob(grid).exp().sum() * (edges[1] - edges[0]) ** 2).item()


@builders
def test_densities_are_normalised(make):
    flow = perturbed(make(2).double()).distribution()
    with torch.no_grad():
        # Kinks of rectified networks and bends of splines leave the midpoint rule errors of
        # second order in its step, 0.06.
        assert total_probability(flow.log_prob) == pytest.approx(1, abs=5e-3)


@builders
def test_conditional_densities_are_normalised_and_differ(make):
    model = perturbed(make(2, context_dim=CONTEXT).double())
    assert isinstance(model, ConditionalFlow)
    contexts = torch.randn(2, CONTEXT, dtype=torch.float64)
    with torch.no_grad():
        for context in contexts:
            flow = model.distribution(context)
            assert total_probability(flow.log_prob) == pytest.approx(1, abs=5e-3)
        x = torch.tensor([1.0, -1.0], dtype=torch.float64)
        one, other = model.distribution(contexts).log_prob(x)
    assert abs(one - other) > 1e-3


@builders
@pytest.mark.parametrize("context_dim", [0, CONTEXT])
def test_svi_trains_every_parameter(make, context_dim):
    model = perturbed(make(3, context_dim=context_dim), size=0.05)
    x = torch.randn(40, 3) * torch.tensor([0.3, 1.0, 2.0]) + 1
    arguments = (torch.randn(40, context_dim), x) if context_dim else (x,)
    before = copy.deepcopy(model.state_dict())
    svi = SVI(model, Empty(), Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(*arguments) for _ in range(10)]
    assert losses[-1] < losses[0]
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@builders
def test_draws_are_scored_as_they_were_made(make):
    model = perturbed(make(3).double())
    x, log_prob = model.distribution().rsample_with_log_prob((50,))
    # Six steps there and six steps back of a method of fourth order do not quite meet.
    tolerance = 2e-3 if make is BUILDERS["ffjord"] else 1e-9
    back = model.distribution().log_prob(x)
    torch.testing.assert_close(back, log_prob, rtol=tolerance, atol=tolerance)


@builders
def test_a_flow_starts_near_its_base(make):
    if make is BUILDERS["nsf"]:
        pytest.skip("its linear maps start as rotations, which change no standard normal")
    model = make(4)
    x = torch.randn(50, 4)
    expected = -(x**2).sum(-1) / 2 - 2 * torch.log(torch.tensor(2 * torch.pi))
    assert (model.distribution().log_prob(x) - expected).abs().mean() < 0.3


@builders
def test_levels_and_boundary(make):
    model = make(3, levels=17, boundary=0.05)
    draws = model(None, num_samples=50)
    assert draws.min() >= 0
    assert draws.max() <= 16
    loss = Trace_ELBO().loss_and_grads(model, UniformDequantization(17, 3), draws)
    # A code for 3 levels of 17 each takes 3 log 17 nats where it is uniform.
    assert 0 < loss / 50 < 20


def test_glow_is_a_density_of_images():
    model = perturbed(glow((1, 4, 4), num_steps=1, hidden=8), size=0.05).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    (flow,) = model.transforms
    z, log_det = flow.inverse_and_log_det(x)
    jacobian = torch.autograd.functional.jacobian(lambda v: flow.inverse_value(v).flatten(), x[0])
    exact = torch.linalg.slogdet(jacobian.reshape(16, 16))[1]
    torch.testing.assert_close(-log_det[0], exact, rtol=1e-9, atol=1e-9)
    base = -(z**2).sum(-1) / 2 - 8 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(model.distribution().log_prob(x), base - log_det)
    Trace_ELBO().loss_and_grads(model, Empty(), x)
    for name, parameter in model.named_parameters():
        assert parameter.grad.any() or name.endswith(("lower", "upper")), name


def test_glow_takes_a_context():
    model = perturbed(glow((1, 4, 4), num_steps=1, hidden=8, context_dim=CONTEXT))
    assert isinstance(model, ConditionalFlow)
    x = model(torch.randn(5, CONTEXT))
    assert x.shape == (5, 1, 4, 4)
    scores = [model.distribution(torch.randn(CONTEXT)).log_prob(x[0]) for _ in range(2)]
    assert scores[0] != scores[1]


@builders
def test_another_base(make):
    base = torch.distributions.Independent(torch.distributions.Laplace(torch.zeros(2), 1.0), 1)
    model = make(2, base=base)
    assert isinstance(model, Flow)
    x = torch.randn(5, 2)
    assert isinstance(model.distribution().base_dist.base_dist, torch.distributions.Laplace)
    torch.testing.assert_close(model.distribution().base_dist.log_prob(x), base.log_prob(x))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: real_nvp(1), ValueError, "dim: expected an integer above 1.*use ffjord"),
        (lambda: maf(1), ValueError, "dim: expected an integer above 1"),
        (lambda: nice(2, num_layers=0), ValueError, "num_layers: expected a positive integer"),
        (lambda: nsf(2, contxt=3), TypeError, r"expected some of base.*got \['contxt'\]"),
        (lambda: iaf(2, context_dim=-1), ValueError, "context_dim: expected a non-negative"),
        (lambda: maf(2, context_dim=1, levels=1), ValueError, "levels: expected an integer above"),
        (lambda: glow((8, 8)), ValueError, "event_shape: expected .channels, height, width"),
        (lambda: glow((1, 6, 6)), ValueError, "divisible by 2"),
        (lambda: ffjord(2, num_flows=0), ValueError, "num_flows: expected a positive integer"),
        (lambda: nice(2, boundary=0.7), ValueError, "boundary: expected a number from 0 to below"),
    ],
)
def test_wrong_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
