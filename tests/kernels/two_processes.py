"""Run by ``torchrun`` in two processes: ``two_processes.py DIRECTORY``.

Each leaves what it holds in ``DIRECTORY/rank<r>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyro
import torch

from pyrogen import kernels

NUM_CHAINS, NUM_SAMPLES = 7, 40  # shares of 4 and 3


def energy(x):
    return 0.5 * x.square().sum(-1)


def start():
    return {"x": torch.arange(float(NUM_CHAINS)).unsqueeze(-1)}


def run(kernel=None, **options):
    if kernel is None:
        kernel = kernels.RandomWalk(energy=energy, event_shape=(1,), step_size=1e-3, compile=False)
    settings = {"warmup_steps": 0, "num_chains": NUM_CHAINS, "disable_progbar": True, **options}
    mcmc = kernels.MCMC(kernel, NUM_SAMPLES, **settings)
    mcmc.run()
    return mcmc


def held(mcmc):
    return {"x": mcmc.get_samples(group_by_chain=True)["x"], **mcmc.info}


def failure(**options):
    try:
        run(**options)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("expected an error")


class Fails(kernels.RandomWalk):
    """Fails in the second process."""

    def start(self, *args, **kwargs):
        if torch.distributed.get_rank() == 1:
            raise ValueError("no luck")
        return super().start(*args, **kwargs)


def main(directory):
    pyro.set_rng_seed(3)
    mcmc = run(initial_params=start())
    ends = {"first": held(mcmc), "noise after": torch.rand(())}
    mcmc.extend(5)
    ends["extended"] = held(mcmc)
    pyro.set_rng_seed(3)
    ends["again"] = held(run(initial_params=start()))
    ends["batched"] = held(run(initial_params=start(), chain_batch_size=2))
    ends["too few"] = failure(num_chains=1)
    fails = Fails(energy=energy, event_shape=(1,), compile=False)
    ends["failed"] = failure(kernel=fails)
    hmc = kernels.HMC(energy=energy, event_shape=(1,), num_steps=3, compile=False)
    ends["law"] = held(run(hmc, num_chains=1000, warmup_steps=60))["x"][:, -1]
    torch.save(ends, directory / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
