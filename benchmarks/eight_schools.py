"""Eight schools, non-centred: effective samples per second, warm-up included.

The smallest bulk effective sample size over all parameters (ArviZ's), divided by the seconds of one
whole run, warm-up and all. Graphs are compiled in a run before, whose seconds are printed too. The
samplers take turns; what is printed is the median over rounds.

NumPyro is run by another interpreter, which needs ``numpyro`` and a CPU ``jax``:

    python benchmarks/eight_schools.py --numpyro-python /path/to/venv/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
NUM_STEPS = 8

Run = Callable[[int], dict[str, Any]]  # seed -> draws of each parameter, [chains, draws, *event]


def effective_sample_size(samples: dict[str, Any]) -> float:
    """The smallest over parameters."""
    import arviz as az
    import numpy as np

    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for value in samples.values():
            columns = np.asarray(value).reshape(*value.shape[:2], -1)
            sizes += [float(az.ess(columns[..., i])) for i in range(columns.shape[-1])]
    return min(sizes)


def pyrogen(name: str, options: argparse.Namespace) -> Run:
    """A kernel of this library, all chains in one process."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyrogen import kernels

    def model(errors: torch.Tensor, effects: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(errors), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * z, errors), obs=effects)

    data = torch.tensor(ERRORS), torch.tensor(EFFECTS)
    if name == "Pyro NUTS":
        pyro_mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(model), options.draws, options.warmup, disable_progbar=True
        )
    kernel = {
        "HMC": lambda: kernels.HMC(model, num_steps=NUM_STEPS),
        "HMC chees": lambda: kernels.HMC(model, trajectory="chees"),
        "NUTS": lambda: kernels.NUTS(model),
        "Pyro NUTS": lambda: None,
    }[name]()

    def run(seed: int) -> dict[str, Any]:
        pyro.set_rng_seed(seed)
        if kernel is None:
            pyro_mcmc.run(*data)
            return dict(pyro_mcmc.get_samples(group_by_chain=True))
        mcmc = kernels.MCMC(
            kernel, options.draws, options.warmup, options.chains, disable_progbar=True
        )
        mcmc.run(*data)
        return mcmc.get_samples(group_by_chain=True)

    return run


def numpyro(name: str, options: argparse.Namespace) -> Run:
    """NumPyro's kernel with vectorised chains; runs in its own interpreter."""
    import jax
    import jax.numpy as jnp
    import numpyro as npr
    import numpyro.distributions as dist
    from numpyro.infer import HMC, MCMC, NUTS

    def model(errors: Any, effects: Any) -> None:
        mu = npr.sample("mu", dist.Normal(0.0, 5.0))
        tau = npr.sample("tau", dist.HalfCauchy(5.0))
        with npr.plate("schools", len(errors), dim=-1):
            z = npr.sample("z", dist.Normal(0.0, 1.0))
            npr.sample("y", dist.Normal(mu + tau * z, errors), obs=effects)

    kernel = (
        NUTS(model) if name == "NUTS" else HMC(model, num_steps=NUM_STEPS, trajectory_length=None)
    )
    mcmc = MCMC(
        kernel,
        num_warmup=options.warmup,
        num_samples=options.draws,
        num_chains=options.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    data = jnp.array(ERRORS), jnp.array(EFFECTS)

    def run(seed: int) -> dict[str, Any]:
        mcmc.run(jax.random.PRNGKey(seed), *data)
        return dict(jax.block_until_ready(mcmc.get_samples(group_by_chain=True)))

    return run


def measured(run: Run, rounds: int) -> dict[str, float]:
    """The first run, and medians of the later ones."""
    start = time.perf_counter()
    run(0)
    first = time.perf_counter() - start
    seconds, sizes = [], []
    for seed in range(1, rounds + 1):
        start = time.perf_counter()
        samples = run(seed)
        seconds.append(time.perf_counter() - start)
        sizes.append(effective_sample_size(samples))
    rates = [size / s for size, s in zip(sizes, seconds, strict=True)]
    return {
        "first": first,
        "seconds": median(seconds),
        "ess": median(sizes),
        "rate": median(rates),
    }


def in_another_process(python: str, library: str, name: str, rounds: int, rest: list[str]) -> Any:
    """One sampler in a process of its own, so that no library shares threads with another."""
    with TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [python, __file__, "--one", library, name, str(result), *rest]
        subprocess.run([*command, "--rounds", str(rounds)], check=True)  # noqa: S603
        return json.loads(result.read_text())


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--numpyro-python", help="an interpreter with NumPyro")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        library, name, path = options.one
        make = numpyro if library == "numpyro" else pyrogen
        Path(path).write_text(json.dumps(measured(make(name, options), options.rounds)))
        return
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Prints a line for each sampler."""
    samplers = [("pyrogen", "HMC"), ("pyrogen", "HMC chees"), ("pyrogen", "NUTS")]
    if options.numpyro_python:
        samplers += [("numpyro", "HMC"), ("numpyro", "NUTS")]
    samplers.append(("pyro", "Pyro NUTS"))
    chosen = {name: str(getattr(options, name)) for name in ("chains", "draws", "warmup")}
    rest = [word for name, value in chosen.items() for word in (f"--{name}", value)]
    print(f"{options.warmup} steps of warm-up, {options.draws} draws, {options.chains} chains")
    print(f"{'sampler':<18}{'first run':>10}{'later':>9}{'min ESS':>10}{'ESS/s':>10}{'ratio':>9}")
    lines = []
    for library, name in samplers:
        python = options.numpyro_python if library == "numpyro" else sys.executable
        rounds = 1 if library == "pyro" else options.rounds
        lines.append(in_another_process(python, library, name, rounds, rest))
    for (library, name), line in zip(samplers, lines, strict=True):
        label = "Pyro NUTS, 1" if library == "pyro" else f"{library} {name}"
        print(
            f"{label:<18}{line['first']:>8.1f} s{line['seconds']:>7.2f} s{line['ess']:>10.0f}"
            f"{line['rate']:>10.0f}{line['rate'] / lines[-1]['rate']:>9.0f}"
        )


if __name__ == "__main__":
    main()
