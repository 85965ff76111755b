"""A conjugate Gaussian whose minibatch gradients are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import scipy.stats
import torch

from pyrogen.kernels import MCMC
from tests.statistics import TEST_FAILURE_RATE, assert_mean_close

NUM_CHAINS, NUM_TIMES = 300, 30


def spaced_draws(kernel, target, burn_in, spacing):
    """Draws ``[chains, times]`` of a run that starts at the mean."""
    mcmc = MCMC(
        kernel,
        NUM_TIMES,
        burn_in,
        num_chains=NUM_CHAINS,
        thinning=spacing,
        initial_params={"mu": torch.full((NUM_CHAINS,), target.mean, dtype=torch.float64)},
        disable_progbar=True,
    )
    mcmc.run(target.data)
    return mcmc.get_samples(group_by_chain=True)["mu"], mcmc


def repeated_draws(kernel, target, num_steps):
    """Draws ``[chains, runs]`` after so many steps from the mean, of separate runs."""
    start = {"mu": torch.full((NUM_CHAINS,), target.mean, dtype=torch.float64)}
    draws = []
    for _ in range(NUM_TIMES):
        settings = {"num_chains": NUM_CHAINS, "initial_params": start, "disable_progbar": True}
        mcmc = MCMC(kernel, 1, num_steps - 1, **settings)
        mcmc.run(target.data)
        draws.append(mcmc.get_samples()["mu"])
    return torch.stack(draws, -1), mcmc


@dataclass(frozen=True)
class Conjugate:
    """``mu ~ N(0, 1)``, ``x_i ~ N(mu, 1)``: the gradient is linear in ``mu``.

    A minibatch of ``n`` of ``N`` data, without replacement, has the gradient
    ``a (mu - m) + xi`` with ``a = 1 + N``, ``m = sum(x) / a``, and noise ``xi`` of mean 0 and
    variance ``N^2 / n * s^2 * (1 - n / N)``, ``s^2`` the variance of the data (with ``N - 1``), for
    every ``mu``.
    """

    data: torch.Tensor
    batch: int | None = None

    def minibatch(self, batch):
        return Conjugate(self.data, batch)

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
        with pyro.plate("data", len(x), subsample_size=self.batch, dim=-1) as index:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[index])

    @property
    def precision(self):
        return 1.0 + len(self.data)

    @property
    def mean(self):
        return float(self.data.sum() / self.precision)

    @property
    def noise(self):
        n, full = self.batch or len(self.data), len(self.data)
        return float(full**2 / n * self.data.var() * (1 - n / full))


CONJUGATE = Conjugate(
    1 + torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
)


def assert_law(draws, mean, variance):
    """Asserts mean and variance of ``draws [chains, times]`` that are independent between times.

    Chains share the random order that their minibatches are taken from, so that at one time they
    are uncorrelated but not independent; times far apart are.
    """
    draws = draws.double()
    assert_mean_close(draws.mean(0), mean, TEST_FAILURE_RATE / 2)
    assert_mean_close((draws - mean).square().mean(0), variance, TEST_FAILURE_RATE / 2)


def assert_variance_close(samples, expected, slack=0.0, failure_rate=TEST_FAILURE_RATE):
    """Two-sided: the variance of independent samples, against its own sampling error.

    The sample variance of ``n`` draws has the variance ``(m4 - m2^2) / n`` for large ``n``, with
    the draws' central moments. ``slack`` is a relative error that the expectation may have.
    """
    samples = samples.detach().double()
    square = (samples - samples.mean()).square()
    error = float(square.std()) / len(samples) ** 0.5
    quantile = scipy.stats.norm.isf(failure_rate / 2)
    got, allowed = float(samples.var()), quantile * error + slack * expected
    assert abs(got - expected) <= allowed, (
        f"variance {got:.6g}, expected {expected:.6g}±{allowed:.2g}"
    )
