from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc import RandomWalkKernel

from pyrogen import kernels
from pyrogen.diagnostics import _replay, from_mcmc
from tests.diagnostics.programs import conjugate
from tests.statistics import TEST_FAILURE_RATE

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


def ours(model, *args, kernel=kernels.HMC, num_chains=3, num_samples=4, **options):
    mcmc = kernels.MCMC(
        kernel(model, compile=False, **options), num_samples, num_chains=num_chains, **SETTINGS
    )
    mcmc.run(*args)
    return mcmc


def test_the_vectorised_driver_gives_the_same_groups():
    mcmc = ours(conjugate, X)
    result = from_mcmc(mcmc)
    mu = mcmc.get_samples(group_by_chain=True)["mu"].numpy()
    assert np.array_equal(result.posterior["mu"], mu)
    expected = scipy.stats.norm.logpdf(X.numpy(), mu[..., None])
    assert np.allclose(result.log_likelihood["x"], expected, rtol=1e-12)
    assert result.log_likelihood["x"].dims == ("chain", "draw", "data")
    lp = expected.sum(-1) + scipy.stats.norm.logpdf(mu)
    assert np.allclose(result.sample_stats["lp"], lp, rtol=1e-12)
    assert np.array_equal(result.observed_data["x"], X)
    assert result.posterior_predictive["x"].shape == (3, 4, 3)
    assert np.unique(result.posterior_predictive["x"]).size == 36
    assert result.attrs["inference_library"] == "pyrogen"


def test_statistics_of_every_draw_have_arviz_names():
    mcmc = ours(conjugate, X, num_steps=5)
    stats = from_mcmc(mcmc).sample_stats
    for name, field in {
        "acceptance_rate": "accept_prob",
        "n_steps": "num_steps",
        "energy": "energy",
        "step_size": "step_size",
        "diverging": "diverging",
    }.items():
        assert stats[name].dims == ("chain", "draw")
        assert np.array_equal(stats[name], mcmc.info[field])
    assert stats["n_steps"].dtype.kind == "i"
    assert stats["diverging"].dtype.kind == "b"
    assert (stats["n_steps"] == 5).all()
    # the one site is unconstrained, so that the potential is minus the log joint
    assert np.allclose(stats["lp"], -stats["potential_energy"], rtol=1e-10)


def test_statistics_of_every_draw_under_pyros_driver():
    mcmc = sampled(conjugate, X, kernel=lambda model: kernels.HMC(model, compile=False))
    stats = from_mcmc(mcmc).sample_stats
    assert {"energy", "acceptance_rate", "diverging", "step_size", "n_steps", "lp"} <= set(stats)
    assert stats["energy"].shape == (1, 6)
    rate = mcmc.diagnostics()["acceptance rate"]["chain 0"]
    assert float(stats["acceptance_rate"].mean()) == pytest.approx(rate)
    assert np.allclose(stats["lp"], -stats["potential_energy"], rtol=1e-10)


def test_an_energy_gives_draws_and_statistics():
    def energy(x):
        return 0.5 * x.square().sum(-1)

    kernel = kernels.HMC(energy=energy, event_shape=(2,), compile=False)
    mcmc = kernels.MCMC(kernel, 4, num_chains=3, **SETTINGS)
    mcmc.run()
    result = from_mcmc(mcmc)
    assert set(result.groups()) == {"posterior", "sample_stats"}
    assert result.posterior["x"].dims == ("chain", "draw", "x_dim_0")
    lp = -0.5 * (result.posterior["x"] ** 2).sum("x_dim_0")
    assert np.allclose(result.sample_stats["lp"], lp, rtol=1e-5)


def test_swaps_of_parallel_tempering():
    def tempered(model, **options):
        return kernels.ParallelTempering(kernels.HMC(model, **options), [1.0, 2.0, 4.0])

    stats = from_mcmc(ours(conjugate, X, kernel=tempered)).sample_stats
    assert stats["swap_accept_prob"].sizes == {"chain": 3, "draw": 4, "swap_accept_prob_dim_0": 2}


def constrained(x):
    """Constrained, local, deterministic, masked and two-dimensional sites."""
    scale = pyro.sample("scale", dist.Gamma(x.new_tensor(2.0), 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(x.new_ones(2)))
    pyro.deterministic("twice", 2 * scale)
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(weights[0], scale))
        with pyro.poutine.mask(mask=torch.tensor([True, False, True])):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(torch.stack([z, z], -1), 1.0).to_event(1), obs=x[:, None] + 1)


def test_vectorised_and_one_by_one_agree(monkeypatch):
    mcmc = ours(constrained, X, num_steps=1)
    fast = from_mcmc(mcmc)
    seen = []

    def refuse(*_):
        seen.append(True)
        raise RuntimeError("not to be vectorised")

    monkeypatch.setattr(_replay, "vectorized", refuse)
    slow = from_mcmc(mcmc)
    assert seen == [True]
    assert set(fast.groups()) == set(slow.groups())
    for group in slow.groups():
        assert set(fast[group].data_vars) == set(slow[group].data_vars)
        for name, values in slow[group].data_vars.items():
            assert fast[group][name].dims == values.dims
            assert set(fast[group][name].coords) == set(values.coords)
            if group != "posterior_predictive":
                assert np.allclose(fast[group][name], values, rtol=1e-10, equal_nan=True)


def test_draws_are_run_in_batches(monkeypatch):
    mcmc = ours(conjugate, X, num_chains=5)
    whole = from_mcmc(mcmc)
    monkeypatch.setattr(_replay, "_NUMBERS_AT_ONCE", 50)
    parts = from_mcmc(mcmc)
    assert np.array_equal(whole.log_likelihood["x"], parts.log_likelihood["x"])


def test_a_model_that_cannot_be_vectorised():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 1.0 if mu.item() < 0 else 2.0
        pyro.sample("x", dist.Normal(mu, scale), obs=x)

    result = from_mcmc(sampled(model, torch.tensor(0.5)))
    mu = result.posterior["mu"].to_numpy()
    expected = scipy.stats.norm.logpdf(0.5, mu, np.where(mu < 0, 1.0, 2.0))
    assert np.allclose(result.log_likelihood["x"], expected, atol=1e-5)


def test_a_mask_that_depends_on_a_draw_is_refused():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), pyro.poutine.mask(mask=x.float() > mu):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x.float())

    with pytest.raises(ValueError, match="expected one mask for all draws"):
        from_mcmc(ours(model, X, num_chains=100))


def test_without_what_has_a_number_per_datum():
    result = from_mcmc(ours(constrained, X, num_steps=1), pointwise=False)
    assert set(result.groups()) == {"posterior", "sample_stats", "observed_data"}
    assert "twice" in result.posterior


def test_a_minibatch_is_the_same_for_all_draws():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30, subsample_size=4) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    x = torch.arange(30.0)
    result = from_mcmc(ours(model, x, kernel=kernels.SGLD))
    index = result.log_likelihood["data"].to_numpy()
    assert len(set(index)) == 4
    x = x.numpy()[index]
    assert np.array_equal(result.observed_data["x"], x)
    expected = scipy.stats.norm.logpdf(x, result.posterior["mu"].to_numpy()[..., None])
    assert np.allclose(result.log_likelihood["x"], expected, atol=1e-3)


@pytest.mark.parametrize(
    "family",
    [
        dist.Normal(1.0, 2.0),
        dist.LogNormal(0.0, 1.0),
        dist.Uniform(-1.0, 1.0),
        dist.Exponential(2.0),
        dist.HalfCauchy(2.0),
        dist.Laplace(1.0, 2.0),
        dist.StudentT(3.0, 1.0, 2.0),
        dist.Gamma(2.0, 3.0),
    ],
    ids=lambda family: type(family).__name__,
)
def test_predictive_draws_are_vectorised_and_follow_their_law(family, monkeypatch):
    def model(x):
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("x", family, obs=x)

    draws = {"mu": torch.randn(20, 100)}
    observed = family.sample((3,))
    monkeypatch.setattr(_replay, "_each", None)  # what draw by draw would need
    groups = _replay.replay_groups(model, (observed,), {}, draws, True)
    predicted = np.asarray(groups["posterior_predictive"].variables["x"][1])
    assert predicted.shape == (20, 100, 3)
    reference = family.sample((6000,)).numpy()
    assert scipy.stats.ks_2samp(predicted.ravel(), reference).pvalue > TEST_FAILURE_RATE
    # draws and data are independent of one another
    ranks = scipy.stats.rankdata(predicted).reshape(-1, 3)
    assert scipy.stats.spearmanr(ranks[:, 0], ranks[:, 1]).pvalue > TEST_FAILURE_RATE
    assert np.unique(predicted).size > 0.99 * predicted.size  # in single precision some are equal
