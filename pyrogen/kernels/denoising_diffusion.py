r"""The samplers of denoising diffusion models: ancestral, and implicit.

Both go from a level to one below it by

.. math:: x_s = \alpha_s D + \sqrt{\sigma_s^2 - c^2}\; E + c z, \qquad
   c = \eta\, \sigma_{s | 0, t},

with :math:`D` and :math:`E` the data and the noise that the network sees in :math:`x_t`, and
:math:`\sigma_{s|0,t}` the standard deviation of the forward process at :math:`s` when both ends are
known. At :math:`\eta = 1` that is a draw of :math:`q(x_s \mid x_t, x_0 = D)`.

References:
    J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239.
    J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, 2021, arXiv:2010.02502.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._solved import Solved
from pyrogen.processes import Exponential

__all__ = ["DDIM", "DDPM"]


class DDPM(Solved):
    """Ancestral sampling of a denoising diffusion model, every level visited.

    :class:`~pyrogen.kernels.ReverseDiffusion` under the name and with the defaults that it has
    there.

    Args:
        model: a Pyro model whose one latent site is score-based, or such a distribution itself,
            whose site is then called ``"x"``. ``None``, to be the ``sampler`` of distributions.
        num_steps: how many levels; the last step ends with the mean of the data.
        grid: what is evenly spaced; see :func:`pyrogen.processes.time_grid`.
        compile: run steps as compiled graphs.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent or observed
            sites.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.processes import VariancePreserving
        >>> process = VariancePreserving()
        >>> def noise(x, t):  # in standard normal data
        ...     return process.std(t).unsqueeze(-1) * x
        >>> sampler = DDPM(num_steps=200, compile=False)
        >>> x = ScoreBased(process, noise, 2, sampler=sampler).sample((2000,))
        >>> abs(float(x.var()) - 1) < 0.1
        True
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_steps: int = 1000,
        grid: str = "uniform",
        compile: bool = True,
    ) -> None:
        super().__init__(model, Exponential(1.0), num_steps, grid, True, compile)


class DDIM(Solved):
    r"""The implicit sampler of a denoising diffusion model, for fewer steps.

    Args:
        model: as of :class:`DDPM`.
        num_steps: how many levels are visited; the last step ends with the mean of the data.
        eta: the share :math:`\eta` of the noise of :class:`DDPM`: at 0 data are a function of the
            noise they began with.
        grid: what is evenly spaced; see :func:`pyrogen.processes.time_grid`.
        compile: run steps as compiled graphs.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent or observed
            sites.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.processes import VariancePreserving
        >>> process = VariancePreserving()
        >>> def noise(x, t):  # in standard normal data
        ...     return process.std(t).unsqueeze(-1) * x
        >>> sampler = DDIM(num_steps=50, compile=False)
        >>> x = ScoreBased(process, noise, 2, sampler=sampler).sample((2000,))
        >>> abs(float(x.var()) - 1) < 0.2
        True
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_steps: int = 50,
        eta: float = 0.0,
        grid: str = "uniform",
        compile: bool = True,
    ) -> None:
        super().__init__(model, Exponential(eta), num_steps, grid, True, compile)
        self.eta = float(eta)
