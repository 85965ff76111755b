"""Trial functions written out, as drifts whose evaluation knows them."""

from __future__ import annotations

import torch
from torch import nn


class Trial(nn.Module):
    """The drift ``grad log psi``, with derivatives by automatic differentiation.

    Args:
        log_psi: ``[*, dim] -> [*]``.
    """

    def __init__(self, log_psi):
        super().__init__()
        self.log_amplitude = log_psi

    def forward(self, x, t=None):
        return torch.func.grad(lambda y: self.log_amplitude(y).sum())(x)

    def local_kinetic(self, x):
        gradient = torch.func.grad(self.log_amplitude)
        slope = torch.func.vmap(gradient)(x)
        curvature = torch.func.vmap(torch.func.jacrev(gradient))(x)
        laplacian = curvature.diagonal(dim1=-2, dim2=-1).sum(-1)
        return -0.5 * (slope.square().sum(-1) + laplacian)


def gaussian(a):
    """``exp(-a r^2 / 2)``."""
    return Trial(lambda x: -0.5 * a * x.square().sum(-1))


def screened(charge, num_electrons):
    """``exp(-Z r)`` for each electron."""
    return Trial(
        lambda x: -charge * x.unflatten(-1, (num_electrons, 3)).norm(dim=-1).sum(-1),
    )


def hookes_wave():
    """The ground state of Hooke's atom at a frequency of 1/2."""

    def log_psi(x):
        apart = (x[..., :3] - x[..., 3:]).norm(dim=-1)
        return torch.log1p(apart / 2) - x.square().sum(-1) / 4

    return Trial(log_psi)
