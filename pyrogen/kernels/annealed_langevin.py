r"""Langevin chains at levels of noise that fall.

.. math:: x \leftarrow x + \tfrac{h_i}{2}\, s(x, t_i) + \sqrt{h_i}\, z, \qquad
   h_i = \delta\, \sigma^2(t_i), \quad t_1 > t_2 > \dots,

some steps at each level. Only the scores are used, not how the levels hang together, so that it
samples what a network learned at levels of its own. It suits processes that keep the scale of the
data (:class:`~pyrogen.processes.VarianceExploding`): where it changes from level to level, the
steps have to make up for it.

References:
    Y. Song, S. Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
    arXiv:1907.05600. A. Jolicoeur-Martineau, R. Piché-Taillefer, R. Tachet des Combes,
    I. Mitliagkas, *Adversarial score matching and improved sampling for image generation*, 2021,
    arXiv:2009.05475.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._options import positive, whole
from pyrogen.kernels._reverse import Reverse, Walk
from pyrogen.kernels._score_site import Denoising
from pyrogen.processes import langevin_step

__all__ = ["AnnealedLangevin"]


class AnnealedLangevin(Reverse):
    r"""Draws of a :class:`~pyrogen.distributions.ScoreBased` site by annealed Langevin dynamics.

    One draw is one run from noise through all levels. What it samples is off by the steps' size,
    as of every unadjusted chain: the variance of a normal at least as wide as the noise comes out
    at most :math:`1 / (1 - \delta/4)` times too large, before it is denoised.

    Args:
        model: a Pyro model whose one latent site is score-based, or such a distribution itself,
            whose site is then called ``"x"``. ``None``, to be the ``sampler`` of distributions.
        num_levels: how many levels.
        steps_per_level: how many steps at each.
        step_size: :math:`\delta`, in units of the variance of the noise.
        grid: what is evenly spaced over levels; with ``"log-snr"`` the noise falls geometrically.
        denoise: end with the mean of the data given the state at the last level.
        compile: run steps as compiled graphs.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent or observed
            sites.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.processes import VarianceExploding
        >>> process = VarianceExploding(0.05, 5.0)
        >>> def score(x, t):  # of standard normal data
        ...     return -x / (1 + process.variance(t))
        >>> sampler = AnnealedLangevin(num_levels=10, steps_per_level=100, compile=False)
        >>> fn = ScoreBased(process, score, (), "score", min_time=0.0, sampler=sampler)
        >>> abs(float(fn.sample((2000,)).var()) - 1) < 0.2
        True
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_levels: int = 10,
        steps_per_level: int = 100,
        step_size: float = 0.2,
        grid: str = "log-snr",
        denoise: bool = True,
        compile: bool = True,
    ) -> None:
        self.num_levels = whole("num_levels", num_levels, 2)
        super().__init__(model, num_levels - (not denoise), grid, denoise, compile)
        self.steps_per_level = whole("steps_per_level", steps_per_level, 1)
        self.step_size = positive("step_size", step_size)

    @property
    def evaluations(self) -> int:
        """How often a run asks the network."""
        return self.num_levels * self.steps_per_level + self.denoise

    def pairs(self, times: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Each level, as often as there are steps at it."""
        return ((t, t) for t in times for _ in range(self.steps_per_level))

    def move(self, potential: Denoising, walk: Walk, t: Tensor, s: Tensor) -> Walk:
        """One step of Langevin's equation."""
        noise = torch.randn_like(walk.x)
        x = langevin_step(potential.process, potential.predict, walk.x, s, self.step_size, noise)
        return walk.to(x, walk.carry)
