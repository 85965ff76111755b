r"""Sampling by the ordinary differential equation of the probability flow.

.. math:: \frac{dx}{dt} = f x - \tfrac12 g^2\, s(x, t), \qquad x_{t_1} \sim p_{t_1}, \quad
   t_1 \to t_0 .

Its draws are a smooth function of the noise they began with, and their density is what
:meth:`pyrogen.distributions.ScoreBased.log_prob` returns.

References:
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456. T. Karras, M. Aittala, T. Aila, S. Laine, *Elucidating the design space
    of diffusion-based generative models*, 2022, arXiv:2206.00364. C. Lu et al., *DPM-Solver++: fast
    solver for guided sampling of diffusion probabilistic models*, 2022, arXiv:2211.01095.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pyrogen.distributions import ScoreBased
from pyrogen.errors import GraphError, NonFiniteError
from pyrogen.kernels._options import one_of, positive
from pyrogen.kernels._phase import Direct
from pyrogen.kernels._reverse import Walk
from pyrogen.kernels._score_site import Denoising
from pyrogen.kernels._solved import Solved
from pyrogen.processes import Euler, Exponential, Solver
from pyrogen.transforms._ode import Solver as Adaptive

__all__ = ["ProbabilityFlow"]

_METHODS: dict[str, Solver] = {
    "euler": Euler(0.0),
    "exponential": Exponential(0.0),
    "heun": Exponential(0.0, "heun"),
    "multistep": Exponential(0.0, "multistep"),
}
_ADAPTIVE = "adaptive"
_MOST_STEPS = 10_000


class ProbabilityFlow(Solved):
    r"""Draws of a :class:`~pyrogen.distributions.ScoreBased` site by the probability flow.

    One draw is one run from noise to data; all chance is in the noise at its beginning.

    Args:
        model: a Pyro model whose one latent site is score-based, or such a distribution itself,
            whose site is then called ``"x"``. ``None``, to be the ``sampler`` of distributions.
        num_steps: how many steps, the last of which denoises (if ``denoise``); of no use to
            ``"adaptive"``.
        method: ``"multistep"``: DPM-Solver++(2M), order 2; ``"heun"``: order 2, two evaluations a
            step; ``"exponential"``: DDIM, order 1; ``"euler"``: steps in time, order 1;
            ``"adaptive"``: Dormand and Prince's method of order 5 by torchdiffeq, all chains with
            one step size, which cannot be captured.
        grid: what is evenly spaced: ``"uniform"``, ``"quadratic"``, ``"log-snr"`` or ``"karras"``;
            see :func:`pyrogen.processes.time_grid`.
        denoise: end with the mean of the data given the state at ``min_time``. Without, draws have
            the very density that ``log_prob`` returns.
        atol: absolute tolerance of ``"adaptive"``, per step and element.
        rtol: relative tolerance, likewise.
        compile: run steps as compiled graphs.

    Raises:
        ValueError: for an unknown option; at the start, if the model has other latent or observed
            sites.
        NonFiniteError: if a state becomes infinite or NaN, with the site and the step.
        RuntimeError: if ``"adaptive"`` needs more than 10,000 steps.
        GraphError: if ``"adaptive"`` is being captured.

    Example:
        >>> from pyrogen.distributions import ScoreBased
        >>> from pyrogen.kernels import MCMC
        >>> from pyrogen.processes import VariancePreserving
        >>> process = VariancePreserving()
        >>> def score(x, t):  # of data N(1, 1/4)
        ...     mean, variance = process.mean_scale(t), process.variance(t)
        ...     return (mean - x) / (0.25 * mean**2 + variance)
        >>> fn = ScoreBased(process, score, (), "score")
        >>> kernel = ProbabilityFlow(fn, num_steps=20, grid="log-snr", compile=False)
        >>> mcmc = MCMC(kernel, num_samples=1, num_chains=4000, disable_progbar=True)
        >>> mcmc.run()
        >>> x = mcmc.get_samples()["x"]
        >>> abs(float(x.mean()) - 1) < 0.05, abs(float(x.std()) - 0.5) < 0.05
        (True, True)
    """

    def __init__(
        self,
        model: Callable[..., Any] | ScoreBased | None = None,
        num_steps: int = 50,
        method: str = "multistep",
        grid: str = "uniform",
        denoise: bool = False,
        atol: float = 1e-5,
        rtol: float = 1e-5,
        compile: bool = True,
    ) -> None:
        self.method = one_of("method", method, (*_METHODS, _ADAPTIVE))
        solver = _METHODS.get(method, Euler(0.0))
        super().__init__(model, solver, num_steps, grid, denoise, compile)
        self.atol = positive("atol", atol)
        self.rtol = positive("rtol", rtol)

    def walk(self, run: Any, num_chains: Tensor) -> tuple[Walk, list[Tensor]]:
        """One run of all chains; arguments as for :meth:`Reverse.walk`."""
        if self.method != _ADAPTIVE:
            return super().walk(run, num_chains)
        if isinstance(run, Direct):
            raise GraphError(
                "the steps of an adaptive solver depend on values, which cannot be captured; "
                'expected ProbabilityFlow(method="multistep") or another of fixed steps'
            )
        walk, grid = run.once(self._begin, num_chains)
        times = [grid[0], grid[-1]]
        walk = self._adaptive(run, walk, *map(float, times))
        return (run.once(self._finish, walk, times[-1]) if self.denoise else walk), times

    def _adaptive(self, run: Any, walk: Walk, start: float, end: float) -> Walk:
        solver = Adaptive("dopri5", self.atol, self.rtol, None, _MOST_STEPS, adjoint=False)
        asked = 0

        def velocity(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            nonlocal asked
            asked += 1
            t = t.clamp(end, start)  # the first step is tried as far as the slope looks flat
            slope: Tensor = run(self._velocity, state[0], t)
            if not bool(slope.isfinite().all()):
                raise self._not_finite(run.target.layout[0][0], float(t))
            return (slope,)

        (x,) = solver.solve(velocity, (walk.x,), start, end, ())
        return walk._replace(x=x, steps=walk.steps + asked)

    def _not_finite(self, site: str, t: float) -> NonFiniteError:
        return NonFiniteError(
            f"ProbabilityFlow: the velocity of site {site!r} is not finite at time {t:.4g}: the "
            "network's prediction is NaN, infinite or far too large there",
            site=site,
        )

    def _velocity(self, potential: Denoising, x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.dtype)
        return potential.predict(x, t).velocity(potential.process, t)

    def _asked(self, walk: Walk) -> Tensor:
        return walk.steps.to(walk.x.dtype) if self.method == _ADAPTIVE else super()._asked(walk)
