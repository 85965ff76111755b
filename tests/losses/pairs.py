"""Pairs of programs that between them use every feature a compiled ELBO must get right.

Each entry makes an ELBO, a model, a guide and arguments. The ELBO knows its plate depth, so that
it draws no numbers to guess it.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoDelta, AutoIAFNormal, AutoLowRankMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import constraints

from pyrogen.guides import (
    AmortizedFlow,
    AmortizedNormal,
    Empty,
    ForwardNoising,
    UniformDequantization,
)
from pyrogen.models import VAE, CategoricalDiffusion, DenoisingDiffusion, Flow
from pyrogen.nn import MLP, ModulatedMLP
from pyrogen.transforms import ActNorm, AffineCoupling

VECTORIZED = {"vectorize_particles": True, "max_plate_nesting": 1}


def vae(elbo, dtype=torch.float32, beta=1.0, encoder=None):
    def make():
        encode = encoder() if encoder else MLP(6, 4, hidden=(8,))
        model = VAE(MLP(2, 6, hidden=(8,)), 2, beta=beta).to(dtype)
        guide = AmortizedNormal(encode, 2, beta=beta).to(dtype)
        return elbo, model, guide, (torch.bernoulli(torch.rand(5, 6)).to(dtype),)

    return make


def flow(levels=None):
    def make():
        layers = [AffineCoupling(2, hidden=(8,)), ActNorm(2)]
        if levels is None:
            return Trace_ELBO(), Flow(2, layers), Empty(), (torch.randn(5, 2),)
        data = torch.randint(levels, (5, 2))
        guide = UniformDequantization(levels, (2,))
        return Trace_ELBO(), Flow(2, layers, levels), guide, (data,)

    return make


def vae_with_flow():
    model = VAE(MLP(2, 6, hidden=(8,)), 2)
    guide = AmortizedFlow(MLP(6, 2 * 2 + 3, hidden=(8,)), 2, flow="planar", num_flows=1)
    return Trace_ELBO(), model, guide, (torch.bernoulli(torch.rand(5, 6)),)


def normalised_encoder():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def auto(elbo, model, guide=AutoNormal, **options):
    def make():
        made = guide(model, **options)
        x = torch.randn(8) + 1
        made(x)  # an AutoGuide makes its parameters when it first runs
        return elbo, model, made, (x,)

    return make


def eight_schools(_):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8, dim=-1):
        theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta, sigma), obs=y)


def subsampled(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=3, dim=-1) as index:
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x[index])


def scaled(x):
    with poutine.scale(scale=0.3):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=torch.tensor(2.5)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def scaled_guide(x):
    with poutine.scale(scale=0.3):
        loc = pyro.param("loc", torch.tensor(0.1))
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.tensor(0.2))))


def masked(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=x > 0.8):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3, dim=-1):
        centres = pyro.sample("centres", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(centres[k], 1.0), obs=x)


def counts(x):
    with pyro.plate("data", len(x), dim=-1):
        n = pyro.sample("n", dist.Poisson(2.0))
        flag = pyro.sample("flag", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(n + flag, 1.0), obs=x)


def counts_guide(x):
    rate = pyro.param("rate", torch.ones(8), constraint=constraints.positive)
    logits = pyro.param("logits", torch.zeros(8))
    baseline = {"baseline": {"baseline_value": x + 1.0}}
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("n", dist.Poisson(rate), infer=baseline)
        pyro.sample("flag", dist.Bernoulli(logits=logits))


def one_hot(x):
    with pyro.plate("data", len(x), dim=-1):
        k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(k @ torch.tensor([-1.0, 0.0, 2.0]), 1.0), obs=x)


def straight_through_guide(x):
    logits = pyro.param("logits", torch.randn(8, 3))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("k", dist.OneHotCategoricalStraightThrough(logits=logits))


def positive(x):
    shape = pyro.sample("shape", dist.Gamma(2.0, 2.0))
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(shape * simplex[0], 1.0), obs=x)


def implicit_guide(x):
    a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
    c = pyro.param("c", torch.ones(4) * 2, constraint=constraints.positive)
    pyro.sample("shape", dist.Gamma(a, a))
    pyro.sample("simplex", dist.Dirichlet(c))


def one_by_one(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(mean, 1.0), obs=x[i])


def checked(x):
    """Sites that insist on validation, and a constant read in Python."""
    mean = pyro.sample("mean", dist.Normal(0.0, torch.tensor(1.0), validate_args=True))
    if torch.tensor(3.0) > 2:
        mean = mean * 2
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean, 1.0, validate_args=True), obs=x)


def written_by_hand(elbo, model, guide):
    return lambda: (elbo, model, guide, (torch.randn(8) + 1,))


def diffusion():
    model = DenoisingDiffusion(
        ModulatedMLP(2, width=8, num_blocks=1), 2, 30, variance="learned", subsample_size=2
    )
    return TraceMeanField_ELBO(), model, ForwardNoising(model), (torch.randn(6, 2),)


def diffusion_of_levels():
    model = CategoricalDiffusion(
        ModulatedMLP((2, 4), width=8, num_blocks=1), (2,), 3, 30, subsample_size=2
    )
    return TraceMeanField_ELBO(), model, ForwardNoising(model), (torch.randint(3, (6, 2)),)


PAIRS = {
    "vae, analytic KL": vae(TraceMeanField_ELBO()),
    "vae, two particles": vae(Trace_ELBO(num_particles=2)),
    "vae, particles in a plate": vae(Trace_ELBO(num_particles=3, **VECTORIZED)),
    "vae, importance weighted": vae(RenyiELBO(num_particles=3)),
    "vae, Renyi in a plate": vae(RenyiELBO(alpha=0.5, num_particles=3, **VECTORIZED)),
    "vae, wake-sleep": vae(ReweightedWakeSleep(num_particles=2, **VECTORIZED)),
    "vae, float64": vae(TraceMeanField_ELBO(), dtype=torch.float64),
    "vae, beta": vae(TraceMeanField_ELBO(), beta=4.0),
    "vae, batch normalisation": vae(Trace_ELBO(), encoder=normalised_encoder),
    "vae, flow posterior": vae_with_flow,
    "flow": flow(),
    "flow, levels": flow(levels=5),
    "diffusion": diffusion,
    "diffusion of levels": diffusion_of_levels,
    "eight schools": auto(TraceMeanField_ELBO(), eight_schools),
    "eight schools, low rank": auto(Trace_ELBO(), eight_schools, AutoLowRankMultivariateNormal),
    "eight schools, flow": auto(Trace_ELBO(), eight_schools, AutoIAFNormal, hidden_dim=[12]),
    "eight schools, MAP": auto(Trace_ELBO(), eight_schools, AutoDelta),
    "subsampled plate": auto(Trace_ELBO(), subsampled),
    "scaled": written_by_hand(TraceMeanField_ELBO(), scaled, scaled_guide),
    "sequential plate": auto(Trace_ELBO(), one_by_one),
    "masked": auto(Trace_ELBO(), masked),
    "enumerated mixture": auto(
        TraceEnum_ELBO(max_plate_nesting=1),
        config_enumerate(mixture),
        lambda model: AutoNormal(poutine.block(model, hide=["k"])),
    ),
    "score function": written_by_hand(Trace_ELBO(), counts, counts_guide),
    "score function, baseline": written_by_hand(TraceGraph_ELBO(), counts, counts_guide),
    "straight-through": written_by_hand(Trace_ELBO(), one_hot, straight_through_guide),
    "implicit gradients": written_by_hand(TraceMeanField_ELBO(), positive, implicit_guide),
    "validated instances": auto(Trace_ELBO(), checked),
}
