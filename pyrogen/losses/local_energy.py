r"""Ground states by their local energy: variational Monte Carlo.

Where the drift of a guide is :math:`v = \nabla \log \psi`, its paths have the stationary law
:math:`\psi^2`, and the cost of a long path per unit of time is the energy of :math:`\psi`,

.. math:: \lim_{T \to \infty} C_T[\nabla \log \psi]
   = \frac{\langle \psi | H | \psi \rangle}{\langle \psi | \psi \rangle}
   = \mathbb{E}_{\psi^2}[E_L], \qquad
   E_L = V - \tfrac12 \left(\nabla^2 \log \psi + \|\nabla \log \psi\|^2\right).

The derivative of that average needs none of :math:`E_L`, nor any of paths,

.. math:: \nabla_\theta E = 2\, \mathrm{cov}_{\psi^2}\!\left(E_L,\; \nabla_\theta \log \psi\right),

and vanishes sample by sample at an eigenfunction, where :math:`E_L` is constant. Walkers are moved
by a step of the guide's own process, which a test of Metropolis accepts or rejects, so that their
law is :math:`\psi^2` whatever the length of the step.

References:
    W. L. McMillan, *Ground state of liquid He4*, 1965, doi:10.1103/PhysRev.138.A442. D. Ceperley,
    G. V. Chester, M. H. Kalos, *Monte Carlo simulation of a many-fermion study*, 1977,
    doi:10.1103/PhysRevB.16.3081. G. O. Roberts, R. L. Tweedie, *Exponential convergence of Langevin
    distributions and their discrete approximations*, 1996, doi:10.2307/3318418.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrogen.kernels._options import whole
from pyrogen.losses._stateful import Carried
from pyrogen.losses._walkers import Problem, WalkerELBO

__all__ = ["LocalEnergy"]

_STEPS_PER_GRAPH = 10
_STEP_SIZE, _CLIPPED = " step size", " clipped"
_ACCEPTED = 0.65  # of the proposals, between what is best far out and what is safe near cusps
_GAIN = 0.1  # of log step size, for each transition


class LocalEnergy(WalkerELBO):
    r"""Minimises the energy of the wave function whose gradient is the guide's drift.

    For a model with the potential :math:`V` and paths, and a guide whose ``drift`` is a
    :class:`~pyrogen.nn.WaveFunction`. The value is ``num_walkers * duration * energy``, that of
    :class:`~pyrogen.losses.PathELBO` for long paths; :attr:`energy` is the last one alone. The
    walkers, as many as the model's plate has paths, are carried from step to step.

    Args:
        num_steps: transitions of the walkers in each gradient step.
        step_size: :math:`\Delta t` of their process at first; it is adapted so that about two
            thirds of the proposals are accepted.
        warmup_steps: transitions before the first gradient step.
        clip: if given, the deviations of local energies from their mean are clipped, in the
            gradient alone, to so many times their mean size. That bounds the weight of outliers and
            biases the gradient; :attr:`num_clipped` reports how many were.

    Attributes:
        energy: the mean local energy of the last gradient step.
        num_clipped: how many local energies were clipped so far.

    Raises:
        TypeError: if the model has no potential or the guide no wave function.
        ValueError: for numbers out of range, and for paths of other than unit mass.
        NonFiniteError: if the energy is not finite, with the site and the number of gradient steps.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyrogen import guides, models, nn
        >>> model = models.FeynmanKac(models.Harmonic(), dim=1, num_walkers=500)
        >>> psi = nn.WaveFunction(nn.Envelope(1, 1, rate=3.0))  # exp(-a x^2 / 2), best at a = 1
        >>> guide, loss = guides.PathDrift(model, drift=psi), LocalEnergy()
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        >>> losses = [svi.step() for _ in range(150)]
        >>> abs(losses[-1] / 500 - 0.5) < 0.01 and abs(loss.energy - 0.5) < 0.01
        True
    """

    def __init__(
        self,
        num_steps: int = 3,
        step_size: float = 0.1,
        warmup_steps: int = 100,
        clip: float | None = None,
    ) -> None:
        super().__init__()
        self.num_steps = whole("num_steps", num_steps, 1)
        self.warmup_steps = whole("warmup_steps", warmup_steps, 0)
        for name, value in (("step_size", step_size), ("clip", clip)):
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
        self.step_size = float(step_size)
        self.clip = None if clip is None else float(clip)

    @property
    def ahead(self) -> int:
        """Many transitions are in graphs of their own, but for the last."""
        return max(0, math.ceil(self.num_steps / _STEPS_PER_GRAPH) - 1)

    @property
    def num_clipped(self) -> int:
        """How many local energies were clipped so far."""
        return sum(int(value) for name, value in self.carried.items() if name.endswith(_CLIPPED))

    # What is carried: the walkers, the size of their steps, the counts.

    def start(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Places the walkers where paths begin, and moves them towards their law."""
        if self.carried:
            return
        problem = self.problem(model, guide, args, kwargs)
        with torch.no_grad():
            x = problem.positions()
            made = {
                **self.placed(problem.site, x),
                problem.site + _STEP_SIZE: x.new_tensor(self.step_size),
                problem.site + _CLIPPED: torch.zeros((), dtype=torch.long, device=x.device),
            }
            _move(made, problem, self.warmup_steps)
        self.carried = made

    def advance(
        self, carried: Mapping[str, Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Carried:
        """Some of the transitions."""
        following = dict(carried)
        with torch.no_grad():
            _move(following, self.problem(model, guide, args, kwargs), _STEPS_PER_GRAPH)
        return following

    def cost(self, carried: Carried, problem: Problem) -> tuple[Tensor, Tensor]:
        """Local energies, with the gradient of their mean."""
        with torch.no_grad():
            _move(carried, problem, self.num_steps - self.ahead * _STEPS_PER_GRAPH)
            x = carried[problem.site]
            local = problem.potential(x) + problem.psi.local_kinetic(x)
            weight = self._weight(carried, problem.site + _CLIPPED, local)
        log_amplitude = problem.psi.log_amplitude(x)
        slope = weight * (log_amplitude - log_amplitude.detach())
        return problem.duration * (local + slope), local.mean()

    def _weight(self, carried: Carried, name: str, local: Tensor) -> Tensor:
        deviation = local - local.mean()
        if self.clip is not None:
            bound = self.clip * deviation.abs().mean()
            clipped = deviation.clamp(-bound, bound)
            carried[name] = carried[name] + (clipped != deviation).sum()
            deviation = clipped - clipped.mean()
        return 2 * len(local) / (len(local) - 1) * deviation


def _move(carried: Carried, problem: Problem, num_steps: int) -> None:
    """Transitions that leave the law ``psi^2`` as it is."""
    site, psi = problem.site, problem.psi
    x, step_size = carried[site], carried[site + _STEP_SIZE]
    value, drift = psi.value_and_drift(x)
    for _ in range(num_steps):
        mean = x + step_size * drift
        there = mean + step_size.sqrt() * torch.randn_like(x)
        value_there, drift_there = psi.value_and_drift(there)
        forth = (there - mean).square().sum(-1)
        back = (x - there - step_size * drift_there).square().sum(-1)
        log_ratio = 2 * (value_there - value) - 0.5 * (back - forth) / step_size
        accept = torch.rand_like(value).log() < log_ratio  # not where it is NaN
        x = torch.where(accept.unsqueeze(-1), there, x)
        drift = torch.where(accept.unsqueeze(-1), drift_there, drift)
        value = torch.where(accept, value_there, value)
        step_size = step_size * (_GAIN * (accept.to(x.dtype).mean() - _ACCEPTED)).exp()
    carried[site], carried[site + _STEP_SIZE] = x, step_size
