r"""Processes that forget the data while their variance stays 1 (or below).

The variance-preserving process has :math:`\alpha^2 + \sigma^2 = 1`,

.. math:: dx = -\tfrac12 \beta(t)\, x\, dt + \sqrt{\beta(t)}\, dW, \qquad
   \alpha^2 = e^{-B(t)}, \quad B(t) = \int_0^t \beta .

With :math:`\beta` linear in time it is the limit of many steps of a denoising diffusion model. The
cosine process turns data into noise at a constant angular speed, :math:`\alpha = \cos\theta(t)`,
:math:`\sigma = \sin\theta(t)`. The sub-variance-preserving process has the :math:`\alpha` of the
linear one and the smaller :math:`\sigma = 1 - \alpha^2`.

References:
    J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239.
    Y. Song et al., *Score-based generative modeling through stochastic differential equations*,
    2021, arXiv:2011.13456. A. Nichol, P. Dhariwal, *Improved denoising diffusion probabilistic
    models*, 2021, arXiv:2102.09672. E. Hoogeboom, J. Heek, T. Salimans, *Simple diffusion*, 2023,
    arXiv:2301.11093.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyrogen.processes._options import below, positive
from pyrogen.processes.linear import LinearProcess

__all__ = ["CosineVariancePreserving", "SubVariancePreserving", "VariancePreserving"]


class _LinearRate(LinearProcess):
    """``beta`` linear in time, from ``beta_min`` to ``beta_max``."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        super().__init__()
        self.beta_min, self.beta_max = below("beta_min", beta_min, "beta_max", beta_max)
        positive("beta_min", beta_min)

    def rate(self, t: Tensor) -> Tensor:
        """``beta(t)``."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def total(self, t: Tensor) -> Tensor:
        """``B(t)``, the integral of ``beta``."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def total_between(self, start: Tensor, end: Tensor) -> Tensor:
        """The integral of ``beta`` from ``start`` to ``end``, without loss of digits."""
        return (end - start) * self.rate(0.5 * (start + end))

    def mean_scale(self, t: Tensor) -> Tensor:
        """``exp(-B/2)``."""
        return (-0.5 * self.total(t)).exp()

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """``-beta alpha / 2``."""
        return -0.5 * self.rate(t) * self.mean_scale(t)

    def _time_of_total(self, total: Tensor) -> Tensor:
        slope = self.beta_max - self.beta_min
        return 2 * total / (self.beta_min + (self.beta_min**2 + 2 * slope * total).sqrt())


class VariancePreserving(_LinearRate):
    """The variance-preserving process with a rate linear in time.

    Args:
        beta_min: the rate at time 0, per unit of time.
        beta_max: the rate at time 1.

    Raises:
        ValueError: unless ``0 < beta_min < beta_max``.

    Example:
        >>> process = VariancePreserving()
        >>> end = torch.tensor(1.0, dtype=torch.float64)
        >>> print(f"{process.mean_scale(end)**2:.4e} {process.std(end):.8f}")
        4.3186e-05 0.99997841
    """

    def variance(self, t: Tensor) -> Tensor:
        """``1 - exp(-B)``."""
        return -torch.expm1(-self.total(t))

    def variance_rate(self, t: Tensor) -> Tensor:
        """``beta exp(-B)``."""
        return self.rate(t) * (-self.total(t)).exp()

    def diffusion(self, t: Tensor) -> Tensor:
        """``sqrt(beta)``."""
        return self.rate(t).sqrt()

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return self._time_of_total(softplus(-log_snr))

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return -torch.expm1(-self.total_between(start, end))


class SubVariancePreserving(_LinearRate):
    """The process with the mean of :class:`VariancePreserving` and ``sigma = 1 - alpha^2``.

    Args:
        beta_min: the rate at time 0, per unit of time.
        beta_max: the rate at time 1.

    Raises:
        ValueError: unless ``0 < beta_min < beta_max``.

    Example:
        >>> t = torch.tensor(0.3)
        >>> bool(SubVariancePreserving().std(t) < VariancePreserving().std(t))
        True
    """

    def std(self, t: Tensor) -> Tensor:
        """``1 - exp(-B)``."""
        return -torch.expm1(-self.total(t))

    def std_rate(self, t: Tensor) -> Tensor:
        """``beta exp(-B)``."""
        return self.rate(t) * (-self.total(t)).exp()

    def variance(self, t: Tensor) -> Tensor:
        """``(1 - exp(-B))^2``."""
        return self.std(t).square()

    def variance_rate(self, t: Tensor) -> Tensor:
        """``2 beta exp(-B) (1 - exp(-B))``."""
        total = self.total(t)
        return -2 * self.rate(t) * (-total).exp() * torch.expm1(-total)

    def diffusion(self, t: Tensor) -> Tensor:
        """``sqrt(beta (1 - exp(-2 B)))``."""
        return (-self.rate(t) * torch.expm1(-2 * self.total(t))).sqrt()

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        # With r = alpha / sigma: r alpha^2 + alpha - r = 0.
        ratio = (0.5 * log_snr).exp()
        mean_scale = 2 * ratio / (1 + (1 + 4 * ratio.square()).sqrt())
        return self._time_of_total(-2 * mean_scale.log())

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        # With q = exp(-(B_t - B_s)): sigma_t = (1 - q) + q sigma_s.
        total, std = self.total_between(start, end), self.std(start)
        return -torch.expm1(-total) * (-torch.expm1(-total) + (-total).exp() * std * (2 - std))


class CosineVariancePreserving(LinearProcess):
    """The variance-preserving process of constant angular speed.

    Args:
        log_snr_min: the log-SNR at time 1, in nats.
        log_snr_max: the log-SNR at time 0.

    Raises:
        ValueError: unless ``log_snr_min < log_snr_max``.

    Example:
        >>> process = CosineVariancePreserving()
        >>> process.log_snr(torch.tensor([0.0, 0.5, 1.0])).round(decimals=3)
        tensor([ 15.,   0., -15.])
    """

    def __init__(self, log_snr_min: float = -15.0, log_snr_max: float = 15.0) -> None:
        super().__init__()
        self.log_snr_min, self.log_snr_max = below(
            "log_snr_min", log_snr_min, "log_snr_max", log_snr_max
        )
        self._first = math.atan(math.exp(-0.5 * log_snr_max))
        self._speed = math.atan(math.exp(-0.5 * log_snr_min)) - self._first

    def angle(self, t: Tensor) -> Tensor:
        """``theta(t)``, in radians."""
        return self._first + self._speed * t

    def mean_scale(self, t: Tensor) -> Tensor:
        """``cos(theta)``."""
        return self.angle(t).cos()

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """``-theta' sin(theta)``."""
        return -self._speed * self.angle(t).sin()

    def variance(self, t: Tensor) -> Tensor:
        """``sin(theta)^2``."""
        return self.angle(t).sin().square()

    def variance_rate(self, t: Tensor) -> Tensor:
        """``theta' sin(2 theta)``."""
        return self._speed * (2 * self.angle(t)).sin()

    def log_snr(self, t: Tensor) -> Tensor:
        """``-2 log tan(theta)``."""
        return -2 * self.angle(t).tan().log()

    def diffusion(self, t: Tensor) -> Tensor:
        """``sqrt(2 theta' tan(theta))``."""
        return (2 * self._speed * self.angle(t).tan()).sqrt()

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return ((-0.5 * log_snr).exp().atan() - self._first) / self._speed

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        turned, total = self._speed * (end - start), self.angle(start) + self.angle(end)
        return turned.sin() * total.sin() / self.angle(start).cos().square()
