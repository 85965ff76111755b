r"""Steps that are exact but for the change of what is predicted within them.

With the predicted data :math:`D` held, the reverse process is linear and has a solution: a step of
any length is

.. math:: x_s = \alpha_s D + \kappa\, \frac{x_t - \alpha_t D}{\sigma_t} + c z, \qquad
   c = \eta\, \sigma_{s | 0, t}, \quad \kappa^2 = \sigma_s^2 - c^2,

with :math:`\sigma_{s|0,t}` the standard deviation of the bridge. At :math:`\eta = 1` it is a draw
of the bridge, as if :math:`D` were the data: ancestral sampling. At :math:`\eta = 0` it is DDIM.
A better :math:`D` raises the order: the mean of its values at both ends (Heun), or one that is
extrapolated from the step before, over :math:`\lambda`, at no further evaluation (multistep).

References:
    J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239.
    J. Song, C. Meng, S. Ermon, *Denoising diffusion implicit models*, 2021, arXiv:2010.02502.
    C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu, *DPM-Solver++: fast solver for guided sampling
    of diffusion probabilistic models*, 2022, arXiv:2211.01095. T. Karras, M. Aittala, T. Aila,
    S. Laine, *Elucidating the design space of diffusion-based generative models*, 2022,
    arXiv:2206.00364. Q. Zhang, Y. Chen, *Fast sampling of diffusion models with exponential
    integrator*, 2022, arXiv:2204.13902.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrogen.processes.linear import LinearProcess
from pyrogen.processes.process import beside
from pyrogen.processes.solver import Predict, Solver, check_eta

__all__ = ["Exponential", "FrozenNoise"]

_FURTHEST = 2.0  # how much longer than the step before a step may be, to an extrapolation


class History(NamedTuple):
    """The data predicted at the step before, and how far that went in half the log-SNR."""

    data: Tensor
    gap: Tensor


@dataclass(frozen=True)
class Exponential(Solver):
    """Exact but for the change of the predicted data within a step.

    ================  ===============================  ======================================
    ``correction``    ``eta = 0``                      ``eta = 1``
    ================  ===============================  ======================================
    ``None``          DDIM, order 1                    ancestral sampling, order 1
    ``"heun"``        order 2, two evaluations a step  order 2 in law, two evaluations a step
    ``"multistep"``   DPM-Solver++(2M), order 2        SDE-DPM-Solver++(2M), order 2
    ================  ===============================  ======================================

    Orders are seen where the process leaves a signal at all times; sane at the end of the straight
    line too.

    Args:
        eta: the share of the bridge's standard deviation that is drawn anew, from 0 to 1.
        correction: ``None``, ``"heun"`` or ``"multistep"``. An extrapolation reaches no further
            than a step that is twice as long as the one before.

    Raises:
        ValueError: for an option outside of these.

    Example:
        >>> from pyrogen.processes import Prediction, VariancePreserving, integrate, time_grid
        >>> process = VariancePreserving()
        >>> def predict(x, t):  # for data N(0, 4)
        ...     variance = 4 * process.mean_scale(t).square() + process.variance(t)
        ...     return Prediction.of(process, -x / variance, x, t, "score")
        >>> x, times = torch.tensor([-1.0, 0.0, 1.0]), time_grid(process, 20, "log-snr")
        >>> integrate(process, Exponential(0.0, "multistep"), predict, x, times)
        tensor([-2.0..., 0.0000, 2.0...])
    """

    eta: float = 1.0
    correction: str | None = None

    def __post_init__(self) -> None:
        check_eta(self.eta, 1.0)
        if self.correction not in (None, "heun", "multistep"):
            raise ValueError(
                f"correction: expected None, 'heun' or 'multistep', got {self.correction!r}"
            )

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        """How often a step asks for a prediction."""
        return 2 if self.correction == "heun" else 1

    @property
    def stochastic(self) -> bool:
        """Whether a step uses its noise."""
        return self.eta > 0

    def init(self, x: Tensor) -> Any:
        """Nothing to extrapolate from."""
        if self.correction != "multistep":
            return ()
        return History(torch.zeros_like(x), x.new_full((), torch.inf))

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
        alpha, std = process.mean_scale(s), process.std(s)
        kept, drawn = self._shares(process, t, s)
        after = beside(alpha, x) * data + beside(std * kept, x) * eps
        if self.eta > 0:
            after = after + beside(std * drawn, x) * noise
        of_change = beside(alpha - std * kept * process.mean_scale(t) / process.std(t), x)
        if self.correction == "heun":
            later, _ = predict(after, s)
            after = after + 0.5 * of_change * (later - data)
        elif self.correction == "multistep":
            gap = 0.5 * (process.log_snr(s) - process.log_snr(t))
            # the first step has none before it; where no signal was left, that one is no guide
            known = torch.where(carry.gap.isfinite(), gap / carry.gap, 0.0).clamp(max=_FURTHEST)
            after = after + of_change * beside(0.5 * known, x) * (data - carry.data)
            carry = History(data, gap)
        return after, carry

    def _shares(self, process: LinearProcess, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Of the standard deviation at ``s``: what is kept of the noise, and what drawn anew."""
        ratio = process.mean_scale(t) / process.mean_scale(s)
        left = ratio.square() * process.variance(s) / process.variance(t)
        fresh = process._variance_between(s, t) / process.variance(t)  # 1 - left, in all its digits
        eta = self.eta
        return ((1 - eta**2) + eta**2 * left).sqrt(), eta * fresh.sqrt()


@dataclass(frozen=True)
class FrozenNoise(Solver):
    r"""The stochastic equation solved with the predicted noise held, where :class:`Exponential`
    holds the data.

    .. math:: x_s = \frac{\alpha_s}{\alpha_t}\, x_t
       - 2 \alpha_s \left(\frac{\sigma_t}{\alpha_t} - \frac{\sigma_s}{\alpha_s}\right) E
       + \frac{\alpha_s}{\alpha_t}\, \sigma_{t|s}\, z

    Of order 1 in law. It needs a signal at the start: not for the straight line from time 1.

    Example:
        >>> from pyrogen.processes import Prediction, VariancePreserving, integrate, time_grid
        >>> process = VariancePreserving()
        >>> def predict(x, t):  # for standard normal data
        ...     return Prediction.of(process, -x, x, t, "score")
        >>> times = time_grid(process, 100, "log-snr")
        >>> draws = integrate(process, FrozenNoise(), predict, torch.randn(5000), times)
        >>> abs(float(draws.var()) - 1) < 0.2
        True
    """

    @property
    def stochastic(self) -> bool:
        """Whether a step uses its noise."""
        return True

    def obstacle(self, process: LinearProcess, start: float) -> str | None:
        """Says where no signal is left."""
        if bool(process.mean_scale(start) > 0):  # type: ignore[arg-type]
            return None
        return (
            f"expected some signal at time {start:g} for steps that hold the noise, got none of "
            f"{type(process).__name__}; begin at max_time=0.999, or hold the data (ancestral)"
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
        data, eps = predict(x, t)
        growth = process.mean_scale(s) / process.mean_scale(t)
        of_noise = 2 * process.std(s) - growth * process.std(t)
        spread = growth * process._variance_between(s, t).sqrt()
        after = beside(process.mean_scale(s), x) * data + beside(of_noise, x) * eps
        return after + beside(spread, x) * noise, carry
