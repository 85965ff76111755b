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
        data, eps = predict(x, t)
        std = process.std(t)
        of_noise = 0.5 * process.variance_rate(t) / std
        if self.eta > 0:
            g = self.eta * process.diffusion(t)
            of_noise = of_noise + 0.5 * g.square() / std
            x = x + beside(g * (t - s).sqrt(), x) * noise
        drift = beside(process.mean_scale_rate(t), x) * data + beside(of_noise, x) * eps
        return x - beside(t - s, x) * drift, carry
