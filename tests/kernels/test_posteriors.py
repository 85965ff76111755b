"""Posterior means against exact and published values."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyrogen.kernels import HMC, MALA, MCMC, RandomWalk
from tests.kernels.posteriors import (
    EIGHT_SCHOOLS,
    ERRORS,
    SCHOOLS,
    assert_posterior_mean,
    eight_schools,
)

hmc = partial(HMC, num_steps=4, compile=False)
KERNELS = {
    "HMC": (hmc, 25, 40),
    "HMC dense": (partial(hmc, mass_matrix="dense"), 25, 40),
    "HMC chees": (partial(hmc, trajectory="chees"), 25, 40),
    "MALA": (partial(MALA, compile=False), 80, 100),
    "RandomWalk": (partial(RandomWalk, compile=False), 200, 200),
}


def run(kernel, num_samples, warmup_steps, *args, num_chains=300):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True)
    mcmc.run(*args)
    return mcmc.get_samples(group_by_chain=True)


@pytest.mark.parametrize("name", ["HMC", "HMC chees"])
def test_eight_schools(name):
    make, _, _ = KERNELS[name]
    drawn = run(make(eight_schools), 60, 80, ERRORS, SCHOOLS)
    for site, (mean, error) in EIGHT_SCHOOLS.items():
        assert_posterior_mean(drawn[site], mean, error)


def conjugate(counts, successes, waits, values):
    rate = pyro.sample("gamma", dist.Gamma(3.0, 2.0))
    chance = pyro.sample("beta", dist.Beta(2.0, 3.0))
    mean = pyro.sample("normal", dist.Normal(1.0, 2.0))
    shares = pyro.sample("dirichlet", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])))
    pyro.sample("successes", dist.Binomial(10, chance), obs=successes)
    pyro.sample("counts", dist.Multinomial(12, shares), obs=counts)
    with pyro.plate("data", len(waits), dim=-1):
        pyro.sample("waits", dist.Exponential(rate), obs=waits)
        pyro.sample("values", dist.Normal(mean, 0.5), obs=values)


CONJUGATE_DATA = (
    torch.tensor([2.0, 7.0, 3.0]),
    torch.tensor(7.0),
    torch.tensor([0.5, 1.5, 0.25, 2.0]),
    torch.tensor([0.5, -0.5, 1.0, 2.0]),
)


@pytest.mark.parametrize("name", KERNELS)
def test_conjugate_posteriors(name):
    """Beta-binomial, Dirichlet-multinomial, Gamma-exponential, Normal-Normal: two moments each."""
    make, num_samples, warmup_steps = KERNELS[name]
    drawn = run(make(conjugate), num_samples, warmup_steps, *CONJUGATE_DATA)
    counts, successes, waits, values = CONJUGATE_DATA
    precision = 1 / 4 + 4 / 0.25
    exact = {
        "beta": dist.Beta(2 + successes, 3 + 10 - successes),
        "gamma": dist.Gamma(3.0 + len(waits), 2.0 + waits.sum()),
        "normal": dist.Normal((1 / 4 + values.sum() / 0.25) / precision, precision**-0.5),
        "dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]) + counts),
    }
    for site, posterior in exact.items():
        draws = drawn[site].reshape(*drawn[site].shape[:2], -1)
        means, variances = posterior.mean.reshape(-1), posterior.variance.reshape(-1)
        for i, (mean, variance) in enumerate(zip(means, variances, strict=True)):
            assert_posterior_mean(draws[..., i], float(mean))
            squares = (draws[..., i] - mean).square()
            assert_posterior_mean(squares, float(variance))


def scale_of_noise(y):
    scale = pyro.sample("scale", dist.Gamma(3.0, 1.0))
    with pyro.plate("data", len(y), dim=-1):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


@pytest.mark.parametrize("name", ["HMC", "HMC chees", "MALA"])
def test_chains_that_start_far_out_are_not_left_behind(name):
    """At small scales, where some chains start, only steps a tenth as long are accepted."""
    y = torch.tensor([1.0, 2.0, 3.0])
    make, _, _ = KERNELS[name]
    drawn = run(make(scale_of_noise), 60, 150, y, num_chains=100)["scale"]
    assert (drawn.std(1) > 0).all()
    log_scale = torch.linspace(-6, 5, 20001, dtype=torch.float64)  # a trapezoidal rule
    scale = log_scale.exp()
    log_joint = dist.Gamma(3.0, 1.0).log_prob(scale) + log_scale
    log_joint = log_joint + dist.Normal(0.0, scale.unsqueeze(-1)).log_prob(y.double()).sum(-1)
    mean = float((log_joint.softmax(0) * scale).sum())
    assert_posterior_mean(drawn, mean)


def logistic_regression(x, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Bernoulli(logits=weights[0] + weights[1] * x), obs=y)


@pytest.mark.parametrize("name", ["HMC", "HMC chees", "MALA"])
def test_logistic_regression(name):
    """Means and variances by quadrature; on so smooth a density the rule is exact to 1e-6."""
    x, y = torch.linspace(-2, 3, 12), torch.tensor([0.0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1])
    make, num_samples, warmup_steps = KERNELS[name]
    drawn = run(make(logistic_regression), num_samples, warmup_steps, x, y)["weights"]
    grid = torch.cartesian_prod(*[torch.linspace(-12, 12, 481, dtype=torch.float64)] * 2)
    logits = grid[:, :1] + grid[:, 1:] * x.double()
    log_joint = dist.Bernoulli(logits=logits).log_prob(y.double()).sum(-1)
    weight = (log_joint - grid.square().sum(-1) / 8).softmax(0).unsqueeze(-1)
    mean = (weight * grid).sum(0)
    variance = (weight * (grid - mean).square()).sum(0)
    for i in range(2):
        assert_posterior_mean(drawn[..., i], float(mean[i]))
        assert_posterior_mean((drawn[..., i] - mean[i]).square(), float(variance[i]))


def test_every_support_has_its_prior_back():
    """Sites of all constrained supports, without data: what is drawn is the prior."""
    priors = {
        "half_line": dist.HalfNormal(1.0),
        "interval": dist.Uniform(-1.0, 3.0),
        "simplex": dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
        "log_normal": dist.LogNormal(0.0, 0.5),
        "independent": dist.Gamma(3.0, 2.0).expand([2]).to_event(1),
    }

    def model():
        for name, prior in priors.items():
            pyro.sample(name, prior)
        pyro.sample("correlation", dist.LKJCholesky(2, 1.0))
        with pyro.plate("twice", 2, dim=-1):
            pyro.sample("plate", dist.Beta(2.0, 2.0))

    drawn = run(hmc(model), 25, 40)
    for name, prior in priors.items():
        draws = drawn[name].reshape(*drawn[name].shape[:2], -1)
        for i, mean in enumerate(prior.mean.reshape(-1)):
            assert_posterior_mean(draws[..., i], float(mean))
    # LKJ(1) of two variables is uniform on (-1, 1).
    correlation = drawn["correlation"][..., 1, 0]
    assert_posterior_mean(correlation, 0.0)
    assert_posterior_mean(correlation.square(), 1 / 3)
    for i in range(2):
        assert_posterior_mean(drawn["plate"][..., i].square(), 0.3)


def test_discrete_sites_are_summed_out():
    """A mixture of two known components: the posterior of the weight by quadrature."""
    data = torch.tensor([-2.0, -1.5, 2.5, 1.0, -3.0])

    def model(data):
        weight = pyro.sample("weight", dist.Beta(2.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            which = pyro.sample("which", dist.Bernoulli(weight))
            pyro.sample("x", dist.Normal(torch.where(which > 0, 2.0, -2.0), 1.5), obs=data)

    grid = torch.linspace(0.0, 1.0, 20_001, dtype=torch.float64)[1:-1]
    likely = [dist.Normal(at, 1.5).log_prob(data.double()).exp() for at in (2.0, -2.0)]
    mixed = grid[:, None] * likely[0] + (1 - grid[:, None]) * likely[1]
    density = dist.Beta(2.0, 1.0).log_prob(grid).exp() * mixed.prod(1)
    expected = float((grid * density).sum() / density.sum())
    with pytest.warns(UserWarning, match="summed out"):
        drawn = run(hmc(model), 25, 40, data)
    assert sorted(drawn) == ["weight"]
    assert_posterior_mean(drawn["weight"], expected)


def test_masks_and_scales_are_honoured():
    values = torch.tensor([1.0, 2.0, 100.0])

    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3, dim=-1), pyro.poutine.scale(scale=2.0):
            keep = torch.tensor([True, True, False])
            pyro.sample("x", dist.Normal(mean, 1.0).mask(keep), obs=values)

    drawn = run(hmc(model), 25, 40)
    assert_posterior_mean(drawn["mean"], 2 * 3.0 / (1 + 2 * 2))


def test_compiled_posterior_with_new_data_of_the_same_shape():
    """The graph of the first run serves the second, with the second's data."""

    def model(data):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    kernel = HMC(model, num_steps=3)
    for shift in (0.0, 50.0):
        data = torch.tensor([0.0, 1.0, 2.0]) + shift
        drawn = run(kernel, 60, 60, data)
        assert_posterior_mean(drawn["mean"], float(data.sum()) / (3 + 0.01))
    captured = kernel._shell.runner._captured.values()
    assert all(graph.captures == 1 for graph in captured)
