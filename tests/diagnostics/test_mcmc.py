from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc import RandomWalkKernel

from pyrogen.diagnostics import from_mcmc
from tests.diagnostics.programs import conjugate

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
SETTINGS = {"warmup_steps": 2, "disable_progbar": True}


def sampled(model, *args, kernel=NUTS, num_samples=6, num_chains=1, **settings):
    mcmc = MCMC(kernel(model), num_samples, num_chains=num_chains, **SETTINGS, **settings)
    mcmc.run(*args)
    return mcmc


def test_groups_dims_and_values():
    mcmc = sampled(conjugate, X)
    result = from_mcmc(mcmc)
    mu = mcmc.get_samples(group_by_chain=True)["mu"].numpy()
    assert np.array_equal(result.posterior["mu"], mu)
    assert result.log_likelihood["x"].dims == ("chain", "draw", "data")
    expected = scipy.stats.norm.logpdf(X.numpy(), mu[..., None])
    assert np.allclose(result.log_likelihood["x"], expected, rtol=1e-12)
    lp = expected.sum(-1) + scipy.stats.norm.logpdf(mu)
    assert np.allclose(result.sample_stats["lp"], lp, rtol=1e-12)
    assert np.array_equal(result.observed_data["x"], X)
    assert result.posterior_predictive["x"].shape == (1, 6, 3)
    assert result.attrs["inference"] == "mcmc"
    rate = mcmc.diagnostics()["acceptance rate"]["chain 0"]
    assert result.sample_stats["mean_acceptance_rate"].to_numpy().tolist() == [rate]


def quartic():
    """exp(-100 x^4): from far out, one leapfrog step overflows."""
    x = pyro.sample("x", dist.Normal(torch.zeros((), dtype=torch.float64), 1e3))
    pyro.factor("well", -100 * x**4)


def test_divergences_stand_at_their_own_chain_and_draw():
    start = torch.full((12,), 0.01, dtype=torch.float64)
    start[10] = 50.0  # sorted as strings, "chain 10" would come third

    def kernel(model):
        return HMC(model, step_size=0.05, num_steps=2, adapt_step_size=False)

    with pytest.warns(UserWarning, match="num_chains=12 is more than available_cpu"):
        mcmc = MCMC(kernel(quartic), 4, 0, {"x": start}, 12, disable_progbar=True)
    mcmc.run()
    diverging = from_mcmc(mcmc).sample_stats["diverging"].to_numpy()
    expected = np.zeros((12, 4), dtype=bool)
    expected[10] = True
    assert np.array_equal(diverging, expected)


def test_divergences_at_single_draws():
    mcmc = sampled(conjugate, X)
    mcmc._diagnostics[0]["divergences"] = [1, 4]
    diverging = from_mcmc(mcmc).sample_stats["diverging"].to_numpy()
    assert np.flatnonzero(diverging[0]).tolist() == [1, 4]


def test_a_kernel_without_divergences():
    result = from_mcmc(sampled(conjugate, X, kernel=RandomWalkKernel))
    assert "diverging" not in result.sample_stats
    assert result.log_likelihood["x"].shape == (1, 6, 3)


def test_a_kernel_without_a_model_gives_draws_only():
    kernel = HMC(potential_fn=lambda z: (z["b"] ** 2).sum() / 2)
    start = {"b": torch.zeros(2)}
    mcmc = MCMC(kernel, 5, 2, initial_params=start, disable_progbar=True)
    mcmc.run()
    result = from_mcmc(mcmc)
    assert set(result.groups()) == {"posterior", "sample_stats"}
    assert result.posterior["b"].dims == ("chain", "draw", "b_dim_0")


def test_local_sites_and_deterministic_ones():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            twice = pyro.deterministic("twice", 2 * z, event_dim=0)
            pyro.sample("x", dist.Normal(twice, 1.0), obs=x)

    result = from_mcmc(sampled(model, X.float()))
    assert result.posterior["z"].dims == result.posterior["twice"].dims == ("chain", "draw", "data")
    assert np.allclose(result.posterior["twice"], 2 * result.posterior["z"])
    assert set(result.observed_data.data_vars) == {"x"}


def test_arguments_may_be_given_anew():
    mcmc = sampled(conjugate, X)
    result = from_mcmc(mcmc, torch.zeros(2, dtype=torch.float64))
    assert np.array_equal(result.observed_data["x"], [0, 0])


def test_enumerated_sites_are_named_in_a_warning():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(mu + k, 1.0), obs=x)

    mcmc = sampled(model, X.float())
    with pytest.warns(UserWarning, match=r"\['k'\] were not drawn"):
        result = from_mcmc(mcmc)
    assert set(result.groups()) == {"posterior", "sample_stats"}


@pytest.mark.parametrize("value", [MCMC(NUTS(conjugate), 2), object()])
def test_without_draws(value):
    with pytest.raises(ValueError, match=r"call run\(...\) first"):
        from_mcmc(value)
