r"""Brownian motion and the Ornstein–Uhlenbeck process.

.. math:: dx = -\gamma x\, dt + s\, dW, \qquad
   \alpha = e^{-\gamma t}, \quad \sigma^2 = s^2\, \frac{1 - e^{-2 \gamma t}}{2 \gamma},

which for :math:`\gamma = 0` is Brownian motion, :math:`\alpha = 1` and :math:`\sigma^2 = s^2 t`.

References:
    G. E. Uhlenbeck, L. S. Ornstein, *On the theory of the Brownian motion*, 1930,
    doi:10.1103/PhysRev.36.823.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrogen.processes._options import positive
from pyrogen.processes.linear import LinearProcess

__all__ = ["Brownian", "OrnsteinUhlenbeck"]


class Brownian(LinearProcess):
    """Brownian motion, ``dx = scale dW``.

    Args:
        scale: standard deviation after one unit of time.

    Raises:
        ValueError: if it is not positive.

    Example:
        >>> Brownian(scale=2.0).std(torch.tensor(4.0))
        tensor(4.)
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = positive("scale", scale)

    def mean_scale(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """``scale^2 t``."""
        return self.scale**2 * t

    def variance_rate(self, t: Tensor) -> Tensor:
        """``scale^2``."""
        return torch.full_like(t, self.scale**2)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return (-log_snr).exp() / self.scale**2

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return self.variance(end - start)


class OrnsteinUhlenbeck(LinearProcess):
    """The Ornstein–Uhlenbeck process, ``dx = -rate x dt + scale dW``.

    Its law tends to a normal distribution of variance ``scale^2 / (2 rate)``.

    Args:
        rate: how fast the beginning is forgotten, per unit of time.
        scale: of the noise.

    Raises:
        ValueError: if one of them is not positive.

    Example:
        >>> process = OrnsteinUhlenbeck(rate=1.0, scale=0.2)
        >>> process.variance(torch.tensor(1.0))
        tensor(0.0173)
        >>> process.transition(torch.tensor([1.0]), torch.tensor(0.3), torch.tensor(1.3)).mean
        tensor([0.3679])
    """

    def __init__(self, rate: float = 1.0, scale: float = 1.0) -> None:
        super().__init__()
        self.rate = positive("rate", rate)
        self.scale = positive("scale", scale)

    def mean_scale(self, t: Tensor) -> Tensor:
        """``exp(-rate t)``."""
        return (-self.rate * t).exp()

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """``-rate exp(-rate t)``."""
        return -self.rate * self.mean_scale(t)

    def variance(self, t: Tensor) -> Tensor:
        """``scale^2 (1 - exp(-2 rate t)) / (2 rate)``."""
        return -(self.scale**2) * torch.expm1(-2 * self.rate * t) / (2 * self.rate)

    def variance_rate(self, t: Tensor) -> Tensor:
        """``scale^2 exp(-2 rate t)``."""
        return self.scale**2 * (-2 * self.rate * t).exp()

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return torch.log1p(2 * self.rate / self.scale**2 * (-log_snr).exp()) / (2 * self.rate)

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return self.variance(end - start)
