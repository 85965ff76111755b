"""The kernels of this library, and Pyro's NUTS, on the problems of ``benchmarks/sampling.py``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from serve import Run, serve

from pyrogen import kernels


def eight_schools(errors: torch.Tensor, effects: torch.Tensor) -> None:
    """Non-centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(errors), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, errors), obs=effects)


def logistic_regression(features: torch.Tensor, labels: torch.Tensor) -> None:
    """Standard normal weights."""
    zero = features.new_zeros(features.shape[1])
    weights = pyro.sample("weights", dist.Normal(zero, 1.0).to_event(1))
    with pyro.plate("data", len(labels), dim=-1):
        pyro.sample("y", dist.Bernoulli(logits=features @ weights), obs=labels)


def gaussian(scale_tril: torch.Tensor) -> None:
    """No data."""
    zero = scale_tril.new_zeros(len(scale_tril))
    pyro.sample("x", dist.MultivariateNormal(zero, scale_tril=scale_tril))


MODELS = {f.__name__: f for f in (eight_schools, logistic_regression, gaussian)}


def make(sampler: str, problem: str, arrays: dict[str, Any], settings: dict[str, int]) -> Run:
    """A function from a seed to the draws of every site ``[chains, draws, *event]``."""
    model, data = MODELS[problem], [torch.from_numpy(array) for array in arrays.values()]
    draws, warmup, chains = settings["draws"], settings["warmup"], settings["chains"]
    if sampler == "Pyro NUTS":
        mcmc = pyro.infer.MCMC(pyro.infer.NUTS(model), draws, warmup, disable_progbar=True)
    else:
        kernel = {
            "HMC": lambda: kernels.HMC(model, num_steps=settings["num_steps"]),
            "HMC chees": lambda: kernels.HMC(model, trajectory="chees"),
            "NUTS": lambda: kernels.NUTS(model),
        }[sampler]()
        mcmc = kernels.MCMC(kernel, draws, warmup, chains, disable_progbar=True)

    def run(seed: int) -> dict[str, np.ndarray]:
        pyro.set_rng_seed(seed)
        mcmc.run(*data)
        samples = mcmc.get_samples(group_by_chain=True)
        return {name: value.numpy() for name, value in samples.items()}

    return run


if __name__ == "__main__":
    serve(make)
