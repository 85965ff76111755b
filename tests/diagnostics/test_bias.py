from __future__ import annotations

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import scipy.stats
import torch

from pyrogen.diagnostics import langevin_bias
from pyrogen.diagnostics.bias import _moments
from pyrogen.kernels import HMC, MALA, MCMC, SGLD, Langevin
from tests.statistics import TEST_FAILURE_RATE

QUANTILE = scipy.stats.norm.isf(TEST_FAILURE_RATE / 2)


def energy(x):
    return 0.5 * ((x - 3) / torch.tensor([1.0, 2.0])).square().sum(-1)


def run(kernel, *args, num_samples=100, warmup_steps=50, num_chains=200):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True)
    mcmc.run(*args)
    return mcmc


def test_bias_of_ula_is_that_of_theory():
    """On N(3, s^2) the variance of ULA is s^2 / (1 - h / (4 s^2)), the mean is right."""
    kernel = Langevin(energy=energy, event_shape=(2,), step_size=1.0, compile=False)
    site = langevin_bias(run(kernel)).sites["x"]
    expected = (1 - 1.0 / (4 * np.array([1.0, 4.0]))) ** -0.5 - 1
    assert (np.abs(site.sd - expected) < QUANTILE * site.sd_error).all()
    assert (np.abs(site.mean) < QUANTILE * site.mean_error).all()
    assert expected[0] > 5 * site.sd_error[0]  # it is seen
    assert site.mean_error.max() < 0.1


def test_an_exact_kernel_is_within_its_error():
    site = langevin_bias(run(MALA(energy=energy, event_shape=(2,), compile=False))).sites["x"]
    assert (np.abs(site.sd) < QUANTILE * site.sd_error).all()
    assert (np.abs(site.mean) < QUANTILE * site.mean_error).all()


def test_errors_are_the_spread_over_repetitions():
    """Many runs of an AR(1) chain: the standard errors match the spread of the moments."""
    runs, chains, draws, rho = 200, 4, 100, 0.6
    x = torch.randn(runs, chains, dtype=torch.float64)
    rows = []
    for _ in range(draws):
        rows.append(x)
        x = rho * x + (1 - rho**2) ** 0.5 * torch.randn_like(x)
    series = torch.stack(rows, -1)  # [runs, chains, draws]
    moments = [_moments(one) for one in series]
    for i in range(2):
        value = torch.stack([m[i][0] for m in moments])
        error = torch.stack([m[i][1] for m in moments])
        # the spread of 200 runs is known to 1/sqrt(400) = 5 %; ESS estimates have a bias too
        assert float(error.mean() / value.std()) == pytest.approx(1, abs=0.25)


def model(x, subsample_size=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=subsample_size) as index:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])


def test_minibatches_need_a_reference():
    x = 1 + torch.randn(50)
    precision, h = 51.0, 0.4 / 51
    biased = run(SGLD(model, step_size=h, compile=False), x, 10)
    with pytest.raises(ValueError, match=r"reference: expected a run of the model on all data"):
        langevin_bias(biased)
    reference = run(HMC(model, compile=False), x)
    site = langevin_bias(biased, reference).sites["mu"]
    noise = 50**2 / 10 * float(x.var()) * (1 - 10 / 50)
    expected = ((1 + h * noise / 4) / (1 - h * precision / 4)) ** 0.5 - 1
    assert abs(site.sd - expected) < QUANTILE * site.sd_error
    assert expected > 5 * site.sd_error


def test_takes_pyros_runs():
    x = 1 + torch.randn(50)
    reference = pyro.infer.MCMC(pyro.infer.NUTS(model), 100, 100, disable_progbar=True)
    reference.run(x)
    biased = run(Langevin(model, step_size=1e-3, compile=False), x)
    assert langevin_bias(biased, reference).largest_mean < 2


def test_a_potential_fn_starts_where_the_run_did():
    def potential(values):
        return 0.5 * values["a"].square().sum()

    kernel = Langevin(potential_fn=potential, step_size=0.5, compile=False)
    mcmc = MCMC(
        kernel, 20, 5, num_chains=50, initial_params={"a": torch.randn(50, 3)}, disable_progbar=True
    )
    mcmc.run()
    assert langevin_bias(mcmc).sites["a"].mean.shape == (3,)


def test_what_is_printed():
    kernel = Langevin(energy=energy, event_shape=(2,), step_size=1.0, compile=False)
    bias = langevin_bias(run(kernel))
    lines = str(bias).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("x[0]")  # the one of smaller scale is more biased
    assert f"{bias.sites['x'].sd[0]:+.3f}" in lines[1]
    assert bias.largest_sd == abs(bias.sites["x"].sd).max()
    assert json.loads(json.dumps(bias.to_dict()))["x"]["sd"] == bias.sites["x"].sd.tolist()


def test_runs_that_cannot_be_compared():
    kernel = Langevin(energy=energy, event_shape=(2,), compile=False)
    with pytest.raises(ValueError, match=r"mcmc: expected an MCMC object that has run, got MCMC"):
        langevin_bias(MCMC(kernel, 5))
    with pytest.raises(ValueError, match="expected at least 4 draws of each chain, got 3"):
        langevin_bias(run(kernel, num_samples=3, warmup_steps=0))
    other = run(MALA(energy=lambda x: x.square().sum(-1), event_shape=(1,), compile=False))
    with pytest.raises(ValueError, match=r"reference: expected the sites \{'x': \(2,\)\}, got"):
        langevin_bias(run(kernel), other)
