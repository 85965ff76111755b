r"""Sampling by a diffusion that runs backwards in time.

.. math:: dx = \left[f x - g^2\, s(x, t)\right] dt + g\, d\bar W, \qquad
   x_{t_1} \sim p_{t_1}, \quad t_1 \to t_0,

in steps of one of the solvers of :mod:`pyrogen.processes`. A predictor-corrector follows each step
(the predictor) with Langevin steps at the level reached (the corrector), which pull the law back to
that level's.

References:
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyrogen.distributions import ScoreBased
from pyrogen.kernels._options import one_of
from pyrogen.kernels._solved import Solved
from pyrogen.processes import Euler, Exponential, FrozenNoise, Solver

__all__ = ["ReverseDiffusion"]

_METHODS: dict[str, Solver] = {
    "ancestral": Exponential(1.0),
    "euler-maruyama": Euler(1.0),
    "exponential": FrozenNoise(),
    "heun": Exponential(1.0, "heun"),
    "multistep": Exponential(1.0, "multistep"),
}


class ReverseDiffusion(Solved):
    r"""Draws of a :class:`~pyrogen.distributions.ScoreBased` site by the reverse diffusion.

    One draw is one run from noise to data, all chains at once; draws are independent. The network
    is asked ``num_steps`` times (twice as often with ``"heun"``), and once more for each corrector
    step.

    Args:
        model: a Pyro model whose one latent site is score-based, or such a distribution itself,
            whose site is then called ``"x"``. ``None``, to be the ``sampler`` of distributions.
        num_steps: how many steps, the last of which denoises (if ``denoise``).
        method: ``"ancestral"``: exact for given data, order 1, at home in all processes;
            ``"multistep"``: SDE-DPM-Solver++(2M), order 2, for few steps; ``"heun"``: order 2, two
            evaluations a step; ``"euler-maruyama"`` and ``"exponential"`` (the noise held): order
            1. The last two need a process with some signal left at the start.
        grid: what is evenly spaced: ``"uniform"``, ``"quadratic"``, ``"log-snr"`` or ``"karras"``;
            see :func:`pyrogen.processes.time_grid`.
        corrector_steps: Langevin steps after each step.
        snr: the signal-to-noise ratio :math:`r` of such a step,
            :math:`x \leftarrow x + 2 r^2 \sigma^2 s + 2 r \sigma z`.
        denoise: end with the mean of the data given the state at ``min_time``.
        compile: run steps as compiled graphs.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent or observed
            sites, or a process that the method cannot start with.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.

    References:
        J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020,
        arXiv:2006.11239. C. Lu et al., *DPM-Solver++: fast solver for guided sampling of diffusion
        probabilistic models*, 2022, arXiv:2211.01095.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.kernels import MCMC
        >>> from pyrogen.processes import VariancePreserving
        >>> process = VariancePreserving()
        >>> def score(x, t):  # of data N(1, 1/4)
        ...     mean, variance = process.mean_scale(t), process.variance(t)
        ...     return (mean - x) / (0.25 * mean**2 + variance)
        >>> fn = ScoreBased(process, score, (), "score")
        >>> kernel = ReverseDiffusion(fn, 50, method="multistep", grid="karras", compile=False)
        >>> mcmc = MCMC(kernel, num_samples=2, num_chains=2000, disable_progbar=True)
        >>> mcmc.run()
        >>> x = mcmc.get_samples()["x"]
        >>> abs(float(x.mean()) - 1) < 0.05, abs(float(x.std()) - 0.5) < 0.05
        (True, True)
        >>> sampled = ScoreBased(process, score, (), "score", sampler=kernel)
        >>> sampled.sample((3,)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_steps: int = 500,
        method: str = "ancestral",
        grid: str = "uniform",
        corrector_steps: int = 0,
        snr: float = 0.16,
        denoise: bool = True,
        compile: bool = True,
    ) -> None:
        self.method = one_of("method", method, tuple(_METHODS))
        super().__init__(
            model, _METHODS[method], num_steps, grid, denoise, compile, corrector_steps, snr
        )
