r"""Small steps along the reverse process.

.. math:: x_s = x_t + (s - t)\, b(x_t, t) + \eta\, g(t) \sqrt{t - s}\, z, \qquad
   b = \alpha' D + \sigma' E + \tfrac12 \eta^2 g^2 \frac{E}{\sigma}

References:
    G. Maruyama, *Continuous Markov processes and stochastic equations*, 1955,
    doi:10.1007/BF02846028.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.process import beside
from pyrogen.processes.solver import Predict, Solver, check_eta

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(Solver):
    r"""The step :math:`x_s = x_t + (s - t)\, b(x_t, t) + \eta\, g(t) \sqrt{t - s}\, z` (Euler and
    Maruyama).

    Of order 1, in law too. Where the diffusion is infinite (the straight line at time 1) it has no
    stochastic step.

    Args:
        eta: :math:`\eta`: 0 for the ordinary differential equation, 1 for Anderson's.

    Raises:
        ValueError: if ``eta`` is negative.

    Example:
        >>> from pyrogen.processes import Prediction, VarianceExploding, integrate, time_grid
        >>> process, t = VarianceExploding(0.01, 10.0), 1.0
        >>> def predict(x, t):  # for standard normal data
        ...     score = -x / (1 + process.variance(t))
        ...     return Prediction.of(process, score, x, t, "score")
        >>> x = (1 + process.variance(t)).sqrt() * torch.randn(5000)
        >>> times = time_grid(process, 200)
        >>> draws = integrate(process, Euler(), predict, x, times)
        >>> abs(float(draws.var()) - 1) < 0.1
        True
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        check_eta(self.eta, float("inf"))

    @property
    def stochastic(self) -> bool:
        """Whether a step uses its noise."""
        return self.eta > 0

    def obstacle(self, process: LinearProcess, start: float) -> str | None:
        """Says where the diffusion is infinite."""
        if self.eta == 0 or bool(process.diffusion(start).isfinite()):
            return None
        return (
            f"expected a finite diffusion at time {start:g} for stochastic steps of Euler's, got "
            f"that of {type(process).__name__}; begin at max_time=0.999, or take exponential steps"
        )

    def step(
        self,
        process: LinearProcess,
        predict: Predict,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Tensor,
        carry: Any,
    ) -> tuple[Tensor, Any]:
        """The state at ``s``; arguments as for :meth:`Solver.step`."""
        now = predict(x, t)
        drift = now.velocity(process, t)
        if self.eta > 0:
            g = self.eta * process.diffusion(t)
            drift = drift + beside(0.5 * g.square() / process.std(t), x) * now.noise
            x = x + beside(g * (t - s).sqrt(), x) * noise
        return x - beside(t - s, x) * drift, carry
