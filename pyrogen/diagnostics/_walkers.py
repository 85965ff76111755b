r"""Walkers in the law of a guide, one step at a time.

By Euler's steps, :math:`x' = x + v h + \sigma \sqrt h\, z`, a walker pays

.. math:: c = \left(\tfrac12 \lVert v / \sigma \rVert^2 + V\right) h + \tfrac1\sigma v \cdot
   \sqrt h\, z

at each, of which the last part has the mean zero: it is a control variate, since at the optimum the
sum of :math:`c` over a path is :math:`E_0 T` up to what depends on its ends. It is the logarithm of
the ratio of the path's densities under the guide and under :math:`e^{-\int V}` times the Brownian
law, too. Every walker makes its way twice with the same noise, by steps of :math:`h` and of
:math:`h / 2`, so that what the step changes is known much better than either cost.

A drift that is the gradient of a known function, :math:`v = \sigma^2 \nabla \log \varphi`, has the
law :math:`\varphi^2` exactly if a step is accepted or rejected by the test of Metropolis. There the
mean of the local energy is that of the trial function, an upper bound of the ground state's
whatever the step,

.. math:: E_L = V - \tfrac{\sigma^2}2 \frac{\nabla^2 \varphi}\varphi
   = V - \tfrac1{2 \sigma^2} \lVert v \rVert^2 - \tfrac12 \nabla \cdot v .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.kernels._metropolis import decide

__all__ = ["Dynamics", "Hopping", "Walkers", "local_energy"]

Field = Callable[[Tensor, Tensor], Tensor]


class Walkers(NamedTuple):
    """Where walkers are, and what they paid.

    Attributes:
        coarse: ``[W, D]``, by steps of ``h``.
        fine: ``[W, D]``, by steps of ``h / 2``, with the same noise.
        costs: ``[2, W]``, the cost of both since it was last set to zero, in double precision.
        log_ratio: ``[W]``, that of ``fine`` since another time.
        failed: the first step after which something was not finite, or -1.
    """

    coarse: Tensor
    fine: Tensor
    costs: Tensor
    log_ratio: Tensor
    failed: Tensor


class Hopping(NamedTuple):
    """Where walkers are that are accepted or rejected.

    Attributes:
        x: ``[W, D]``.
        log_amplitude: ``[W]``.
        drift: ``[W, D]``.
        accepted: ``[W]``, the sum of the probabilities of acceptance.
        spread: ``[2, W]``, the sum of the squares of the noise, of accepted steps and of all.
    """

    x: Tensor
    log_amplitude: Tensor
    drift: Tensor
    accepted: Tensor
    spread: Tensor

    @property
    def pace(self) -> Tensor:
        """The share of the diffusion that is accepted: of the time that a step stands for."""
        accepted, proposed = self.spread.sum(-1)
        return torch.where(proposed > 0, accepted / proposed, 1.0)


class Dynamics:
    """One step of all walkers, as pure functions of tensors.

    Args:
        drift: ``v(x, t)``.
        potential: ``V(x)``.
        scale: of the noise.
        dt: length of a step.
        amplitude: a module whose value is ``v``, with ``log_amplitude`` and ``local_kinetic``; or
            ``None``.
    """

    def __init__(
        self,
        drift: Field,
        potential: Callable[[Tensor], Tensor],
        scale: float,
        dt: float,
        amplitude: Any = None,
    ) -> None:
        self.drift, self.potential, self.scale, self.dt = drift, potential, scale, dt
        self.amplitude = amplitude

    def start(self, x: Tensor) -> Walkers:
        """Walkers that paid nothing yet."""
        nothing = x.new_zeros(2, len(x), dtype=torch.float64)
        return Walkers(x, x, nothing, nothing[0], torch.full((), -1, device=x.device))

    def move(self, walkers: Walkers, t: Tensor, step: Tensor) -> Walkers:
        """One step of ``h``, and two of ``h / 2``."""
        half, first = 0.5 * self.dt, torch.randn_like(walkers.fine)
        second = torch.randn_like(first)
        coarse, cost = self._step(walkers.coarse, t, self.dt, (first + second) * 0.5**0.5)
        middle, early = self._step(walkers.fine, t, half, first)
        fine, late = self._step(middle, t + half, half, second)
        finer = early + late
        costs = walkers.costs + torch.stack([cost, finer])
        finite = costs.isfinite().all() & coarse.isfinite().all() & fine.isfinite().all()
        failed = torch.where((walkers.failed < 0) & ~finite, step, walkers.failed)
        return Walkers(coarse, fine, costs, walkers.log_ratio + finer, failed)

    def _step(self, x: Tensor, t: Tensor, h: float, noise: Tensor) -> tuple[Tensor, Tensor]:
        drift = self.drift(x, t)
        control = drift / self.scale
        running = (0.5 * control.square().sum(-1) + self.potential(x)) * h
        martingale = math.sqrt(h) * (control * noise).sum(-1)
        moved = x + h * drift + self.scale * math.sqrt(h) * noise
        return moved, running.double() + martingale.double()

    # With the test of Metropolis.

    def log_amplitude(self, x: Tensor) -> Tensor:
        """``log phi``, whose gradient times ``scale^2`` is the drift."""
        value: Tensor = self.amplitude.log_amplitude(x)
        return value / self.scale**2

    def stand(self, x: Tensor, t: Tensor) -> Hopping:
        """Walkers before their first hop."""
        nothing = x.new_zeros(2, len(x), dtype=torch.float64)
        return Hopping(x, self.log_amplitude(x), self.drift(x, t), nothing[0], nothing)

    def hop(self, walkers: Hopping, t: Tensor) -> Hopping:
        """A step of ``h``, accepted so that the law is ``phi^2``."""
        spread = self.scale * math.sqrt(self.dt)
        noise = torch.randn_like(walkers.x)
        x = walkers.x + self.dt * walkers.drift + spread * noise
        log_amplitude, drift = self.log_amplitude(x), self.drift(x, t)
        back = (walkers.x - x - self.dt * drift) / spread
        length = noise.square().sum(-1)
        change = 2 * (walkers.log_amplitude - log_amplitude)
        change = change + 0.5 * (back.square().sum(-1) - length)
        accepted, accept_prob, _ = decide(change, x, drift)
        row = accepted.unsqueeze(-1)
        return Hopping(
            torch.where(row, x, walkers.x),
            torch.where(accepted, log_amplitude, walkers.log_amplitude),
            torch.where(row, drift, walkers.drift),
            walkers.accepted + accept_prob,
            walkers.spread + torch.stack([accept_prob * length, length]),
        )

    def local_energy(self, walkers: Hopping) -> Tensor:
        """``E_L`` of each walker, ``[W]``, in double precision."""
        kinetic: Tensor = self.amplitude.local_kinetic(walkers.x)  # of a scale of 1
        excess = 0.5 * (1 - 1 / self.scale**2) * walkers.drift.square().sum(-1)
        return (kinetic + excess + self.potential(walkers.x)).double()


def local_energy(dynamics: Dynamics, x: Tensor, t: Tensor) -> Tensor:
    """``E_L [W]`` of any drift, with its divergence by one backward pass for each coordinate."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        drift = dynamics.drift(x, t)
        divergence = torch.zeros_like(x[..., 0])
        for i in range(x.shape[-1] if drift.requires_grad else 0):
            (row,) = torch.autograd.grad(
                drift[..., i].sum(), x, retain_graph=True, allow_unused=True
            )
            divergence = divergence if row is None else divergence + row[..., i]
    with torch.no_grad():
        kinetic = 0.5 * (drift.square().sum(-1) / dynamics.scale**2 + divergence)
        return (dynamics.potential(x) - kinetic).double()
