"""FlowGuide: exact posteriors, supports, plates, copies, and bounds that are bounds."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.nn import PyroModule
from torch.distributions import constraints

from pyrogen.checks import check_pair
from pyrogen.diagnostics import from_svi
from pyrogen.guides import FlowGuide
from pyrogen.losses import Compiled
from pyrogen.transforms import AffineCoupling

FLOWS = ["continuous", "iaf", "planar", "radial", "spline", "sylvester"]
flows = pytest.mark.parametrize("flow", FLOWS)
X = torch.tensor([[0.5, 1.0, -0.3, 0.2], [0.1, 0.4, -1.0, 0.9]])


def supports(x):
    """Sites of every kind of support, inside and outside of plates, one observed."""
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 4, dim=-1):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        rate = pyro.sample("rate", dist.Uniform(-1.0, 3.0))
        pyro.sample("pair", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(mean + rate + shares[..., 0], scale), obs=x)


SITES = ["scale", "shares", "mean", "rate", "pair"]


def conjugate(x):
    """A correlated posterior in closed form: x = a + b + noise."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(a + b, 0.5), obs=x)


def log_evidence(x):
    covariance = 5 * torch.ones(len(x), len(x)) + 0.25 * torch.eye(len(x))
    return dist.MultivariateNormal(torch.ones(len(x)), covariance).log_prob(x).item()


def perturbed(guide, size=0.1):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return guide


def make(flow, model=supports, args=(X,), **options):
    options = {"num_flows": 1 if flow == "continuous" else 2, **options}
    return perturbed(FlowGuide(model, args, flow=flow, **options))


@flows
def test_it_pairs_with_the_model_and_trains_under_every_elbo(flow):
    guide = make(flow)
    assert guide.site_names == SITES
    assert guide.dim == 1 + 2 + 4 + 4 + 8
    check_pair(supports, guide, (X,))
    particles = {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2}
    for elbo in (
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Trace_ELBO(**particles),
        RenyiELBO(**particles),
    ):
        guide.zero_grad()
        assert math.isfinite(elbo.loss_and_grads(supports, guide, X))
        for name, parameter in guide.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


@pytest.mark.parametrize("flow", ["iaf", "spline", "sylvester"])
def test_the_joint_density_is_that_of_the_jacobian(flow):
    guide = FlowGuide(supports, (X,), flow=flow, init_scale=0.5)
    guide = perturbed(guide, 0.02).double()  # little, so that no sigmoid saturates
    joint = guide.distribution()
    epsilon = torch.randn(guide.dim, dtype=torch.float64)

    def unit(v):
        """Values without what the sum of the shares makes redundant."""
        for transform in joint.transforms:
            v = transform(v)
        return torch.cat([v[:3], v[4:]])

    z = epsilon
    for transform in joint.transforms:
        z = transform(z)
    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(unit, epsilon))[1]
    exact = dist.Normal(0.0, 1.0).log_prob(epsilon).sum() - log_det
    torch.testing.assert_close(joint.log_prob(z), exact, rtol=1e-6, atol=1e-6)
    assert joint.support.check(z)
    assert not joint.support.check(-z)


@flows
def test_the_trace_is_scored_by_the_joint(flow):
    guide = make(flow)
    trace = poutine.trace(guide).get_trace(X)
    trace.compute_log_prob()
    joint = trace.nodes["_flow_guide_latent"]
    torch.testing.assert_close(trace.log_prob_sum(), joint["log_prob"])
    values = torch.cat([trace.nodes[name]["value"].flatten() for name in SITES])
    assert torch.equal(values, joint["value"])
    model = poutine.trace(poutine.replay(supports, trace)).get_trace(X)
    assert all(
        s["fn"].support.check(s["value"]).all() for n, s in model.nodes.items() if n in SITES
    )


@flows
def test_vectorised_particles_are_as_good_as_one_by_one(flow):
    guide = make(flow)
    with torch.no_grad(), pyro.plate("particles", 5, dim=-3):
        trace = poutine.trace(guide).get_trace(X)
        model = poutine.trace(poutine.replay(supports, trace)).get_trace(X)
    shapes = {name: list(trace.nodes[name]["value"].shape) for name in SITES}
    assert shapes == {
        "scale": [5, 1, 1],
        "shares": [5, 1, 1, 3],
        "mean": [5, 1, 4],
        "rate": [5, 1, 4],
        "pair": [5, 1, 4, 2],
    }
    for i in range(5):
        values = {name: trace.nodes[name]["value"][i, 0] for name in SITES}
        values["scale"], values["shares"] = values["scale"][0], values["shares"][0]
        one = poutine.trace(poutine.condition(supports, values)).get_trace(X)
        one.compute_log_prob()
        model.compute_log_prob()
        for name in (*SITES, "x"):
            torch.testing.assert_close(
                model.nodes[name]["log_prob"][i].sum(), one.nodes[name]["log_prob"].sum()
            )


@flows
def test_copies_draw_the_same_and_keep_no_model(flow):
    class Model(PyroModule):
        def forward(self, x):
            conjugate(x)

    model, x = Model(), torch.randn(3)
    guide = make(flow, model, (x,))
    Trace_ELBO().loss_and_grads(model, guide, x)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    other = make(flow, model, (x,))
    other.load_state_dict(torch.load(file, weights_only=True))
    losses = []
    for clone in (guide, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), other):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        losses.append(Trace_ELBO().loss(model, clone, x))
    assert losses == losses[:1] * 4
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("flow", ["iaf", "planar"])
def test_a_captured_loss_is_the_same(flow):
    guide = make(flow)
    losses = []
    for elbo in (Trace_ELBO(), Compiled(Trace_ELBO(), compile=False)):
        pyro.set_rng_seed(1)
        losses.append(elbo.loss_and_grads(supports, guide, X))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_it_reaches_a_correlated_posterior():
    """An autoregressive layer holds every Gaussian, so it can reach this one."""
    x = torch.tensor([1.0, 2.0, 1.5])
    guide = FlowGuide(conjugate, (x,), flow="iaf", num_flows=1, init_scale=0.5)
    particles = {"vectorize_particles": True, "max_plate_nesting": 1}
    elbo = Trace_ELBO(num_particles=8, **particles)(conjugate, guide)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        elbo(x).backward()
        optimizer.step()
        schedule.step()
    bound = -Trace_ELBO(num_particles=4000, **particles).loss(conjugate, guide, x)
    # 4000 draws leave 0.01 nats; a Gaussian without correlation falls short by 0.8.
    assert log_evidence(x) - 0.1 < bound < log_evidence(x) + 0.05
    result = from_svi(conjugate, guide, x, num_samples=50)
    assert set(result.posterior.data_vars) == {"a", "b"}


def test_the_bound_is_the_evidence_where_the_guide_is_the_posterior():
    """x = a + noise: a Gaussian posterior, set by hand."""
    x = torch.tensor([1.0, 2.0, 1.5], dtype=torch.float64)

    def model(x):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(a, 0.5), obs=x)

    guide = FlowGuide(model, (x,), flow=lambda dim: [])
    variance = 1 / (1 + len(x) / 0.25)
    with torch.no_grad():
        guide.affine.loc.fill_(variance * x.sum() / 0.25)
        guide.affine.log_scale.fill_(math.log(variance) / 2)
    covariance = torch.ones(3, 3, dtype=torch.float64) + 0.25 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x).item()
    for _ in range(3):
        assert -Trace_ELBO().loss(model, guide, x) == pytest.approx(exact, rel=1e-12)


def test_enumerated_sites_are_left_to_the_elbo():
    @config_enumerate
    def model(x):
        means = pyro.sample("means", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            which = pyro.sample("which", dist.Bernoulli(0.5)).long()
            pyro.sample("x", dist.Normal(means[which], 0.3), obs=x)

    x = torch.randn(5)
    guide = FlowGuide(model, (x,))
    assert guide.site_names == ["means"]
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    assert math.isfinite(elbo.loss_and_grads(model, guide, x))


@pytest.mark.parametrize("flow", FLOWS)
def test_one_dimension(flow):
    def model():
        pyro.sample("z", dist.LogNormal(0.0, 1.0))

    if flow == "iaf":
        with pytest.raises(ValueError, match="at least 2 dimensions"):
            FlowGuide(model, flow=flow)
        return
    guide = make(flow, model, ())
    assert guide()["z"] > 0
    Trace_ELBO().loss_and_grads(model, guide)
    assert all(p.grad.any() for p in guide.parameters())


def test_dtype_and_own_flow():
    guide = make(lambda dim: [AffineCoupling(dim)], conjugate, (torch.zeros(3),), num_flows=1)
    assert guide.double()()["a"].dtype == torch.float64
    assert guide.distribution().log_prob(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def discrete():
    pyro.sample("k", dist.Poisson(3.0))


def subsampled():
    with pyro.plate("data", 10, subsample_size=3, dim=-1):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def moving():
    upper = pyro.sample("upper", dist.LogNormal(0.0, 1.0))
    pyro.sample("z", dist.Uniform(0.0, upper))


def on_the_sphere():
    pyro.sample("direction", dist.ProjectedNormal(torch.zeros(3)))


def observed():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (discrete, {}, ValueError, "site 'k': expected a continuous distribution, got Poisson"),
        (subsampled, {}, ValueError, "site 'z': expected vectorised plates without subsampling"),
        (moving, {}, ValueError, "site 'z': expected one shape and support in every run"),
        (observed, {}, ValueError, r"expected latent sites, got none; its guide is guides\.Empty"),
        (on_the_sphere, {}, ValueError, "site 'direction': expected a support with a bijection"),
        ("model", {}, TypeError, "model: expected a Pyro program, got str"),
        (moving, {"init_scale": 0}, ValueError, "init_scale: expected a positive number, got 0"),
    ],
)
def test_what_has_no_joint_flow_is_refused(model, options, error, message):
    with pytest.raises(error, match=message):
        FlowGuide(model, **options)
    with pytest.raises(ValueError, match="flow: expected one of"):
        FlowGuide(conjugate, (torch.zeros(3),), flow="glow")


class Improper(dist.ImproperUniform):
    """Flat on a box of the plane or on all of it."""


def potential(name):
    """The four test energies of Rezende and Mohamed (2015), as programs."""
    support = (
        constraints.real_vector
        if name == "U1"
        else constraints.independent(constraints.interval(-4.0, 4.0), 1)
    )

    def model():
        flat = Improper(support, torch.Size(), torch.Size([2]))
        z = pyro.sample("z", flat.mask(False))
        pyro.factor("energy", -ENERGIES[name](z))

    return model


def u1(z):
    ring = ((z.norm(dim=-1) - 2) / 0.4) ** 2 / 2
    left, right = (-(((z[..., 0] - at) / 0.6) ** 2) / 2 for at in (2, -2))
    return ring - torch.logaddexp(left, right)


def u2(z):
    return ((z[..., 1] - torch.sin(math.pi * z[..., 0] / 2)) / 0.4) ** 2 / 2


def bumps(z, first, second):
    w1 = torch.sin(math.pi * z[..., 0] / 2)
    return -torch.logaddexp(
        -(((z[..., 1] - w1) / first) ** 2) / 2,
        -(((z[..., 1] - w1 + second[0](z)) / second[1]) ** 2) / 2,
    )


def w2(z):
    return 3 * torch.exp(-(((z[..., 0] - 1) / 0.6) ** 2) / 2)


def w3(z):
    return 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)


ENERGIES = {
    "U1": u1,
    "U2": u2,
    "U3": lambda z: bumps(z, 0.35, (w2, 0.35)),
    "U4": lambda z: bumps(z, 0.4, (w3, 0.35)),
}
LOG_Z = {"U1": 1.87750162, "U2": 2.08208934, "U3": 2.64170513, "U4": 2.68456763}


@pytest.mark.parametrize("name", LOG_Z)
def test_the_energies_have_the_published_normalisers(name):
    axis = (
        torch.linspace(-4, 4, 1601, dtype=torch.float64)
        if name != "U1"
        else torch.linspace(-8, 8, 3201, dtype=torch.float64)
    )
    middle = (axis[1:] + axis[:-1]) / 2
    z = torch.cartesian_prod(middle, middle)
    log_z = (-ENERGIES[name](z)).logsumexp(0) + 2 * (axis[1] - axis[0]).log()
    assert log_z.item() == pytest.approx(LOG_Z[name], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOG_Z)
def test_the_bound_of_a_flow_comes_close_to_the_normaliser_and_never_above(name):
    model = potential(name)
    guide = FlowGuide(model, flow="spline", num_flows=4, init_scale=1.0)
    particles = {"vectorize_particles": True, "max_plate_nesting": 0}
    elbo = Trace_ELBO(num_particles=256, **particles)(model, guide)
    elbo()
    optimizer = torch.optim.Adam(guide.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        elbo().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        joint = guide.distribution()
        z, log_q = joint.rsample_with_log_prob((50_000,))
        weights = -ENERGIES[name](z) - log_q
    error = 5 * weights.std() / len(weights) ** 0.5
    gap = LOG_Z[name] - weights.mean()
    assert gap > -error
    # U2 to U4 are bands cut off by a box; how close 600 steps lead there is no claim.
    assert gap < (0.05 if name == "U1" else 0.6) + error
