r"""Ground states by the variance of a log-ratio of path measures.

Girsanov's log-ratio of the guide's paths to free ones that are weighed by the potential,

.. math:: \ell = \int_0^T v(x_t) \cdot dx_t - \tfrac12 \|v(x_t)\|^2 dt + V(x_t)\, dt
   + \log \psi(x_0) - \log \psi(x_T), \qquad v = \nabla \log \psi ,

is the number :math:`E_0 T` on *every* path if :math:`\psi` is the ground state, since then
:math:`e^{E_0 t} \psi(x_t)\, e^{-\int V}` is a martingale. So its variance over any paths at all is
zero there, and nowhere else but at eigenfunctions:

.. math:: D(\psi) = \tfrac12 \operatorname{Var}(\ell) .

The paths are those of the present guide, but held fixed: there is no gradient through the
stochastic differential equation. The network is evaluated at all points of all paths in one call.
On a grid the integral with :math:`dx` is Itô's sum, and :math:`D` does not vanish but with the
length of the steps.

References:
    N. Nüsken, L. Richter, *Solving high-dimensional Hamilton–Jacobi–Bellman PDEs using neural
    networks: perspectives from the theory of controlled diffusions and measures on path space*,
    2021, arXiv:2005.05409.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyrogen.losses._stateful import Carried
from pyrogen.losses._walkers import Problem, WalkerELBO

__all__ = ["LogVariance"]

_STEPS_PER_GRAPH = 10
_PATH, _PLACE = " path", " place"


class LogVariance(WalkerELBO):
    r"""Minimises half the variance of the log-ratio over paths that are held fixed.

    For a model with the potential :math:`V` and paths, and a guide whose ``drift`` is a
    :class:`~pyrogen.nn.WaveFunction`. The value is :math:`D` times the number of walkers, and
    tells how far :math:`\psi` is from an eigenfunction; the energy that goes with it is
    :attr:`energy`. Paths begin where those of the last gradient step ended.

    Attributes:
        energy: the mean of :math:`\ell / T` in the last gradient step.

    Raises:
        TypeError: if the model has no potential or the guide no wave function.
        ValueError: for paths of other than unit mass.
        NonFiniteError: if the value is not finite, with the site and the number of gradient steps.

    Example:
        >>> import pyro
        >>> from pyro.infer import SVI
        >>> from pyrogen import guides, models, nn
        >>> model = models.FeynmanKac(models.Harmonic(), 1, num_steps=50, num_walkers=200)
        >>> psi = nn.WaveFunction(nn.Envelope(1, 1, rate=2.0))  # exp(-a x^2 / 2), best at a = 1
        >>> guide, loss = guides.PathDrift(model, drift=psi), LogVariance()
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), loss=loss)
        >>> losses = [svi.step() for _ in range(60)]
        >>> losses[-1] < 0.2 * losses[0] and abs(loss.energy - 0.5) < 0.05
        True
    """

    progress = (*WalkerELBO.progress, "_chunks")

    def __init__(self) -> None:
        super().__init__()
        self._chunks = 0

    @property
    def ahead(self) -> int:
        """Paths are drawn in graphs of some steps each."""
        return self._chunks

    # What is carried: where paths begin, and, while they are drawn, the paths and how far they are.

    def start(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Places the walkers where paths begin."""
        problem = self.problem(model, guide, args, kwargs)
        num_steps = len(problem.prior.times) - 1
        self._chunks = num_steps // _steps(num_steps)
        if not self.carried:
            with torch.no_grad():
                self.carried = self.placed(problem.site, problem.positions())

    def advance(
        self, carried: Mapping[str, Tensor], model: Any, guide: Any, args: Any, kwargs: Any
    ) -> Carried:
        """Some steps of all paths."""
        following, problem = dict(carried), self.problem(model, guide, args, kwargs)
        site, times = problem.site, problem.prior.times
        with torch.no_grad():
            x = following[site]
            if site + _PATH not in following:
                following[site + _PATH] = x.expand((len(times), *x.shape)).contiguous()
                following[site + _PLACE] = torch.zeros(1, dtype=torch.long, device=x.device)
            place, path = following[site + _PLACE], following[site + _PATH]
            for _ in range(_steps(len(times) - 1)):
                now, then = times[place], times[place + 1]
                step = then - now
                x = x + step * problem.psi(x, now[0]) + step.sqrt() * torch.randn_like(x)
                place = place + 1
                path = path.index_copy(0, place, x.unsqueeze(0))
            following[site], following[site + _PATH], following[site + _PLACE] = x, path, place
        return following

    def cost(self, carried: Carried, problem: Problem) -> tuple[Tensor, Tensor]:
        """The squared deviations of the log-ratios, whose mean is the variance."""
        path = carried.pop(problem.site + _PATH).movedim(0, -2)
        del carried[problem.site + _PLACE]
        ratio = _log_ratio(problem, path)
        deviation = ratio - ratio.mean()
        unbiased = len(ratio) / (len(ratio) - 1)
        return 0.5 * unbiased * deviation.square(), ratio.mean() / problem.duration


def _log_ratio(problem: Problem, path: Tensor) -> Tensor:
    """``l`` of each path ``[walkers, T + 1, D]``."""
    before, times = path[..., :-1, :], problem.prior.times
    drift, step = problem.psi(before, times[:-1]), times.diff()
    increments = (drift * path.diff(dim=-2)).sum((-2, -1))
    costs = problem.potential(before) - 0.5 * drift.square().sum(-1)
    ends = problem.psi.log_amplitude(path[..., [0, -1], :])
    ratio: Tensor = increments + (costs * step).sum(-1) + ends[..., 0] - ends[..., 1]
    return ratio


def _steps(num_steps: int) -> int:
    """How many steps are in one graph: they divide the path."""
    return max(k for k in range(1, _STEPS_PER_GRAPH + 1) if num_steps % k == 0)
