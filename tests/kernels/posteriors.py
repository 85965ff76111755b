"""Models with known posteriors, and how close a run has to come to them."""

from __future__ import annotations

import warnings

import arviz as az
import pyro
import pyro.distributions as dist
import torch

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
# posteriordb's reference draws: mean and its standard error
EIGHT_SCHOOLS = {"mu": (4.4105, 0.033), "tau": (3.6021, 0.032)}


def eight_schools(errors, effects=None):
    """Rubin 1981, non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(errors), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, errors), obs=effects)


def effective_sample_size(values):
    """ArviZ's, of ``values [chains, draws]``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains")
        return float(az.ess(values))


def assert_posterior_mean(draws, expected, error=0.0, least_ess=1000):
    """``draws [chains, draws]`` within 5 Monte Carlo standard errors of their own ESS.

    ``error`` is the standard error of the expected value itself.
    """
    values = draws.double().numpy()
    ess = effective_sample_size(values)
    assert ess > least_ess, f"effective sample size {ess:.0f}, expected {least_ess}"
    allowed = 5 * (values.var() / ess + error**2) ** 0.5
    off = abs(values.mean() - expected)
    assert off < allowed, f"mean {values.mean():.5g}, expected {expected:.5g} +- {allowed:.2g}"
