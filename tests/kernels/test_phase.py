"""Some steps of a kernel as a part of something else."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import nn

from pyrogen.kernels import MALA, SGLD, Langevin
from pyrogen.kernels._phase import moved
from pyrogen.kernels._target import Target


class Counted(nn.Module):
    """An energy that counts its gradients, and is not a number far out."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.gradients = 0

    def forward(self, x):
        if x.requires_grad:
            x.register_hook(self._count)
        energy = 0.5 * self.scale * x.square().sum(-1)
        return torch.where(x.abs().amax(-1) < 3, energy, torch.nan)

    def _count(self, gradient):
        self.gradients += 1


@pytest.mark.parametrize(
    ("kernel", "gradients"),
    [(Langevin(step_size=0.5), 4), (SGLD(step_size=0.5), 4), (MALA(step_size=0.7), 5)],
    ids=["Langevin", "SGLD", "MALA"],
)
@torch.no_grad()
def test_a_phase_is_its_steps_without_a_gradient_for_a_step_not_taken(kernel, gradients):
    energy = Counted()
    target = Target.from_energy(energy, (2,))
    start = torch.randn(500, 2)

    potential, tuning = target.potential(), kernel.initial_tuning(target)
    pyro.set_rng_seed(1)
    state = kernel.init(potential, start, tuning)
    diverged = torch.zeros(500, dtype=torch.bool)
    for _ in range(4):
        state, info = kernel.step(potential, state, tuning)
        diverged |= info.diverging
    assert 0 < int(diverged.sum()) < 500

    energy.gradients = 0
    pyro.set_rng_seed(1)
    phase = moved(kernel, target, start, 4)
    assert energy.gradients == gradients
    assert torch.equal(phase.position, state.position)
    assert torch.equal(phase.diverged, diverged)
