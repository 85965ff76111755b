"""Small programs whose posterior is known."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch


def conjugate(x):
    """mu ~ N(0, 1), x_i ~ N(mu, 1)."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def conjugate_posterior(x):
    precision = len(x) + 1
    pyro.sample("mu", dist.Normal(x.sum() / precision, precision**-0.5))


def conjugate_log_evidence(x):
    cov = torch.eye(len(x), dtype=x.dtype) + 1
    return float(dist.MultivariateNormal(torch.zeros_like(x), cov).log_prob(x))


def local(x):
    """z_i ~ N(0, 1), x_i ~ N(z_i, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(variance=0.5):
    """N(x / 2, variance): the posterior at one half."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, variance**0.5))

    return guide


def local_log_evidence(x):
    return float(dist.Normal(torch.zeros_like(x), math.sqrt(2)).log_prob(x).mean())
