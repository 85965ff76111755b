r"""The straight line from data to noise.

.. math:: x_t = (1 - t)\, x_0 + t\, \epsilon, \qquad \epsilon \sim N(0, I),

whose velocity :math:`\epsilon - x_0` flow matching learns. As an Itô process it has
:math:`f = -1/(1-t)` and :math:`g^2 = 2t/(1-t)`, both infinite at time 1, where all of the data is
forgotten; the velocity of its probability flow is finite there.

References:
    X. Liu, C. Gong, Q. Liu, *Flow straight and fast*, 2022, arXiv:2209.03003. Y. Lipman, R. T. Q.
    Chen, H. Ben-Hamu, M. Nickel, M. Le, *Flow matching for generative modeling*, 2022,
    arXiv:2210.02747.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyrogen.processes.linear import LinearProcess

__all__ = ["Rectified"]


class Rectified(LinearProcess):
    """The straight line from data at time 0 to standard normal noise at time 1.

    Example:
        >>> process = Rectified()
        >>> t = torch.tensor(0.25)
        >>> process.mean_scale(t), process.std(t)
        (tensor(0.7500), tensor(0.2500))
    """

    def mean_scale(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - t

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def std(self, t: Tensor) -> Tensor:
        """``t``."""
        return t

    def std_rate(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def variance(self, t: Tensor) -> Tensor:
        """``t^2``."""
        return t.square()

    def variance_rate(self, t: Tensor) -> Tensor:
        """``2 t``."""
        return 2 * t

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        return (-0.5 * log_snr).sigmoid()

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return (end - start) * (start + end - 2 * start * end) / (1 - start).square()
