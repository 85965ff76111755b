"""Amortised flows: densities by quadrature, gradients, and a posterior that bends."""

from __future__ import annotations

import copy
import math
import pickle

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrogen.checks import check_pair
from pyrogen.guides import AmortizedFlow, AmortizedNormal
from pyrogen.losses import Compiled
from pyrogen.models import VAE, Normal
from pyrogen.nn import MLP
from pyrogen.transforms import AffineCoupling
from pyrogen.transforms._bijection import forward_through

FLOWS = ["continuous", "iaf", "planar", "radial", "spline", "sylvester"]
CONTEXT = 4
flows = pytest.mark.parametrize("flow", FLOWS)


def guide(flow, latent_dim=2, num_flows=None, context_dim=CONTEXT, **options):
    num_flows = (1 if flow == "continuous" else 2) if num_flows is None else num_flows
    encoder = MLP(5, 2 * latent_dim + context_dim, hidden=(8,))
    made = AmortizedFlow(encoder, latent_dim, flow, num_flows, **options)
    with torch.no_grad():
        for parameter in made.transforms.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@flows
def test_the_log_determinant_is_that_of_the_jacobian(flow):
    made = guide(flow).double()
    posterior = made.posterior(torch.randn(3, 5, dtype=torch.float64))
    z0 = posterior.base_dist.sample()
    z, log_det = forward_through(posterior.transforms, z0, 1)
    assert z.shape == (3, 2)
    for i in range(3):

        def row(v, i=i):
            full = torch.cat([z0[:i], v.unsqueeze(0), z0[i + 1 :]])
            return forward_through(posterior.transforms, full, 1)[0][i]

        jacobian = torch.autograd.functional.jacobian(row, z0[i])
        # The solver of the continuous flow keeps to 1e-5 in each step, for value and trace.
        tolerance = 2e-4 if flow == "continuous" else 1e-9
        exact = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_det[i], exact, rtol=0, atol=tolerance)


@flows
def test_draws_are_scored_by_the_pass_that_made_them(flow):
    made, x = guide(flow), torch.randn(4, 5)
    posterior = made.posterior(x)
    assert posterior.batch_shape == (4,)
    assert posterior.event_shape == (2,)
    z = posterior.rsample()
    log_prob = posterior.log_prob(z)
    if flow not in ("planar", "radial"):
        again = made.posterior(x).log_prob(z.detach())
        torch.testing.assert_close(again, log_prob, rtol=1e-3, atol=1e-3)
    assert (log_prob - log_prob[0]).abs().max() > 1e-3


@flows
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_gradients_reach_every_parameter(flow, latent_dim):
    made = guide(flow, latent_dim)
    model = VAE(MLP(latent_dim, 5, hidden=(8,)), latent_dim, likelihood="normal")
    x = torch.randn(6, 5)
    check_pair(model, made, (x,))
    particles = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 1}
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO(), RenyiELBO(**particles)):
        made.zero_grad()
        assert math.isfinite(elbo.loss_and_grads(model, made, x))
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


@flows
def test_copies_and_capture(flow):
    made, x = guide(flow, beta=0.5), torch.randn(4, 5)
    model = VAE(MLP(2, 5, hidden=(8,)), 2, likelihood="normal", beta=0.5)
    Trace_ELBO().loss_and_grads(model, made, x)
    other = guide(flow)
    other.load_state_dict(made.state_dict())
    clones = [made, copy.deepcopy(made), pickle.loads(pickle.dumps(made)), other]
    losses = []
    for clone in clones:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        losses.append(Trace_ELBO().loss(model, clone, x))
    assert losses == losses[:1] * 4
    if flow == "continuous":
        return  # steps that adapt to values cannot be captured
    pyro.set_rng_seed(1)
    captured = Compiled(Trace_ELBO(), compile=False).loss(model, made, x)
    assert captured == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("flow", ["sylvester", "iaf", "spline", "planar"])
def test_it_starts_near_the_gaussian(flow):
    encoder = MLP(5, 8, hidden=(8,))
    made = AmortizedFlow(encoder, 2, flow, num_flows=1)
    x = torch.randn(500, 5)
    with torch.no_grad():
        gaussian = made.posterior(x).base_dist
        z = made.posterior(x).rsample()
    # One layer moves a draw by much less than the standard deviation.
    assert ((z - gaussian.mean) / gaussian.stddev).square().mean() < 1.5**2


def test_a_flow_fits_a_curved_posterior_better_than_a_gaussian():
    """x = z₂ + z₁² + noise: the posterior is a parabola, known on a grid."""

    class Parabola(nn.Module):
        def forward(self, z):
            return z[..., 1:] + z[..., :1] ** 2

    model = VAE(Parabola(), 2, Normal(0.3, learned=False))
    x = torch.full((1, 1), 1.5)
    axis = torch.linspace(-6, 6, 1201)
    grid = torch.cartesian_prod(axis, axis)
    joint = model.prior().log_prob(grid) + model.decode(grid).log_prob(x)
    evidence = (joint.logsumexp(0) + 2 * math.log(0.01)).item()
    gaps = {}
    for name, made in {
        "gaussian": AmortizedNormal(MLP(1, 4, hidden=()), 2),
        "flow": AmortizedFlow(MLP(1, 8, hidden=()), 2, "sylvester", 4),
    }.items():
        particles = {"vectorize_particles": True, "max_plate_nesting": 1}
        elbo = Trace_ELBO(num_particles=32, **particles)(model, made)
        optimizer = torch.optim.Adam(made.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            elbo(x).backward()
            optimizer.step()
        with torch.no_grad():
            gaps[name] = evidence + Trace_ELBO(num_particles=4000, **particles).loss(model, made, x)
    # The bound is a bound (4000 draws leave 0.02), and the flow closes much of the gap.
    assert gaps["flow"] > -0.06
    assert gaps["flow"] < 0.6 * gaps["gaussian"]


def test_the_context_is_what_the_encoder_leaves():
    assert guide("planar").context_dim == CONTEXT
    assert guide("planar", context_dim=0).context_dim == 0
    plain = nn.Sequential(nn.Linear(5, 7))
    assert AmortizedFlow(plain, 2, "sylvester", context_dim=3).context_dim == 3
    with pytest.raises(ValueError, match=r"context_dim: expected a number.*no attribute out_shape"):
        AmortizedFlow(plain, 2)
    with pytest.raises(
        ValueError, match=r"expected output \[\*, 4 \+ context_dim\].*got \[\*, 3\]"
    ):
        AmortizedFlow(MLP(5, 3), 2)
    wrong = AmortizedFlow(plain, 2, "sylvester", context_dim=4)
    with pytest.raises(ValueError, match=r"expected output \[\*, 8\] \(2 \* latent_dim \+ context"):
        wrong(torch.zeros(3, 5))


def test_one_dimension_and_own_flows():
    made = guide("spline", latent_dim=1)
    assert made(torch.randn(4, 5)).shape == (4, 1)
    with pytest.raises(ValueError, match="at least 2 dimensions for 'iaf', got 1; use 'spline'"):
        guide("iaf", latent_dim=1)
    own = guide(lambda dim, context_dim: [AffineCoupling(dim, context_dim=context_dim)])
    assert own(torch.randn(4, 5)).shape == (4, 2)
    shared = guide(lambda dim: [AffineCoupling(dim)], context_dim=0)
    assert shared(torch.randn(4, 5)).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"flow": "glow"}, ValueError, r"flow: expected one of \['continuous', .* got 'glow'"),
        ({"flow": 3}, TypeError, "flow: expected a name or a function, got int"),
        ({"flow": "iaf", "num_flows": 0}, ValueError, "num_flows: expected a positive integer"),
        ({"flow": "iaf", "beta": 0}, ValueError, "beta: expected a positive finite number"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        guide(**options)
    with pytest.raises(ValueError, match=r"expected data to infer z from"):
        guide("planar")(None, num_samples=3)
