"""NumPyro's kernels, chains vectorised, on the problems of ``benchmarks/sampling.py``."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import HMC, MCMC, NUTS
from serve import Run, serve


def eight_schools(errors: Any, effects: Any) -> None:
    """Non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(errors), dim=-1):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, errors), obs=effects)


def logistic_regression(features: Any, labels: Any) -> None:
    """Standard normal weights."""
    zero = jnp.zeros(features.shape[1])
    weights = numpyro.sample("weights", dist.Normal(zero, 1.0).to_event(1))
    with numpyro.plate("data", len(labels), dim=-1):
        numpyro.sample("y", dist.Bernoulli(logits=features @ weights), obs=labels)


def gaussian(scale_tril: Any) -> None:
    """No data."""
    zero = jnp.zeros(len(scale_tril))
    numpyro.sample("x", dist.MultivariateNormal(zero, scale_tril=scale_tril))


MODELS = {f.__name__: f for f in (eight_schools, logistic_regression, gaussian)}


def make(sampler: str, problem: str, arrays: dict[str, Any], settings: dict[str, int]) -> Run:
    """A function from a seed to the draws of every site ``[chains, draws, *event]``."""
    model, data = MODELS[problem], [jnp.asarray(array) for array in arrays.values()]
    if sampler == "NUTS":
        kernel = NUTS(model)
    else:
        kernel = HMC(model, num_steps=settings["num_steps"], trajectory_length=None)
    mcmc = MCMC(
        kernel,
        num_warmup=settings["warmup"],
        num_samples=settings["draws"],
        num_chains=settings["chains"],
        chain_method="vectorized",
        progress_bar=False,
    )

    def run(seed: int) -> dict[str, np.ndarray]:
        mcmc.run(jax.random.PRNGKey(seed), *data)
        samples = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        return {name: np.asarray(value) for name, value in samples.items()}

    return run


if __name__ == "__main__":
    serve(make)
