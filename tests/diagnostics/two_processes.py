"""Run by ``torchrun`` in two processes: ``two_processes.py DIRECTORY``.

Each leaves what it holds in ``DIRECTORY/rank<r>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyro
import torch

from pyrogen.diagnostics import ground_state_energy
from pyrogen.guides import PathDrift
from pyrogen.models import FeynmanKac, Harmonic
from tests.diagnostics.trial import gaussian

SETTINGS = {
    "num_walkers": 301,
    "duration": 20.0,
    "equilibration": 5.0,
    "window": 4.0,
    "compile": False,
}


def bad_in_the_second(x, t):
    return -x / (1 - torch.distributed.get_rank())


def main(directory):
    pyro.set_rng_seed(3)
    model = FeynmanKac(Harmonic(), 1, 1.0, 20)
    found = ground_state_energy(model, PathDrift(model, drift=gaussian(0.6)), **SETTINGS)
    names = ("cost", "cost_half", "extrapolated", "variational", "projected")
    estimates = {name: getattr(found, name) for name in names}
    ends = {
        "found": {name: (each.value, each.error) for name, each in estimates.items()},
        "num_windows": found.num_windows,
        "noise after": torch.rand(()),
    }
    try:
        ground_state_energy(model, PathDrift(model, drift=bad_in_the_second), **SETTINGS)
    except (ArithmeticError, RuntimeError) as error:
        ends["failed"] = type(error).__name__
    torch.save(ends, directory / f"rank{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
