r"""The variance-exploding process: data under noise that grows geometrically.

.. math:: x_t \mid x_0 \sim N(x_0, \sigma^2(t)), \qquad
   \sigma(t) = \sigma_{\min} \left(\frac{\sigma_{\max}}{\sigma_{\min}}\right)^{t}, \qquad
   g = \sigma \sqrt{2 \log(\sigma_{\max} / \sigma_{\min})} .

At time 0 the data are already under noise of scale :math:`\sigma_{\min}`.

References:
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrogen.processes._options import below, positive
from pyrogen.processes.linear import LinearProcess

__all__ = ["VarianceExploding"]


class VarianceExploding(LinearProcess):
    """The variance-exploding process.

    Args:
        sigma_min: standard deviation of the noise at time 0, in the units of the data.
        sigma_max: standard deviation of the noise at time 1.

    Raises:
        ValueError: unless ``0 < sigma_min < sigma_max``.

    Example:
        >>> VarianceExploding(0.01, 50.0).std(torch.tensor([0.0, 0.5, 1.0]))
        tensor([1.0000e-02, 7.0711e-01, 5.0000e+01])
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        super().__init__()
        self.sigma_min, self.sigma_max = below("sigma_min", sigma_min, "sigma_max", sigma_max)
        positive("sigma_min", sigma_min)
        self._growth = math.log(sigma_max / sigma_min)

    def mean_scale(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def std(self, t: Tensor) -> Tensor:
        """``sigma(t)``."""
        return self.sigma_min * (self._growth * t).exp()

    def variance(self, t: Tensor) -> Tensor:
        """``sigma(t)^2``."""
        return self.std(t).square()

    def variance_rate(self, t: Tensor) -> Tensor:
        """``2 log(sigma_max / sigma_min) sigma(t)^2``."""
        return 2 * self._growth * self.variance(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """``-2 log sigma(t)``."""
        return -2 * (math.log(self.sigma_min) + self._growth * t)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._growth

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return -self.variance(end) * torch.expm1(-2 * self._growth * (end - start))
