r"""A variance-preserving process whose schedule is learned.

The log-SNR falls from :math:`\lambda_0` to :math:`\lambda_1`, and where it is when is a density of
:math:`r = (\lambda_0 - \lambda) / (\lambda_0 - \lambda_1)`, constant in each of :math:`K` bins of
equal width:

.. math:: \lambda(t) = \lambda_0 - (\lambda_0 - \lambda_1)\, r(t), \qquad
   \frac{dr}{dt} = \frac{1}{K m_k} \text{ in bin } k, \qquad \sum_k m_k = 1,

so that the process spends the share :math:`m_k` of its time in bin :math:`k`.

References:
    D. P. Kingma, T. Salimans, B. Poole, J. Ho, *Variational diffusion models*, 2021,
    arXiv:2107.00630.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.processes._options import below
from pyrogen.processes.linear import LinearProcess

__all__ = ["LearnedVariancePreserving"]


class LearnedVariancePreserving(nn.Module, LinearProcess):
    r"""The variance-preserving process of a schedule that is learned.

    The ends of the log-SNR are parameters like any other. The shares of time are trained by
    :class:`pyrogen.losses.DiffusionELBO` alone, so that its estimates vary least; to all other
    objectives they are constants.

    Args:
        log_snr_min: the log-SNR at time 1 to begin with, in nats.
        log_snr_max: the log-SNR at time 0 to begin with.
        num_bins: into how many bins of the log-SNR time is shared out.

    Raises:
        ValueError: unless ``log_snr_min < log_snr_max``, or if there is no bin.

    Example:
        >>> process = LearnedVariancePreserving()
        >>> process.log_snr(torch.tensor([0.0, 0.5, 1.0])).detach()
        tensor([13.3000,  4.1500, -5.0000])
    """

    def __init__(
        self, log_snr_min: float = -5.0, log_snr_max: float = 13.3, num_bins: int = 32
    ) -> None:
        super().__init__()
        low, high = below("log_snr_min", log_snr_min, "log_snr_max", log_snr_max)
        if not isinstance(num_bins, int) or num_bins < 1:
            raise ValueError(f"num_bins: expected a positive integer, got {num_bins!r}")
        self.first = nn.Parameter(torch.tensor(high))
        self.log_span = nn.Parameter(torch.tensor(high - low).log())
        self.shares = nn.Parameter(torch.zeros(num_bins))

    @property
    def masses(self) -> Tensor:
        """The share of time of each bin, ``[num_bins]``."""
        return self.shares.softmax(-1)

    def log_mass(self, t: Tensor) -> Tensor:
        """The logarithm of the share of time of the bin that ``t`` is in, with its gradient."""
        k, _ = self._bin(t)
        return _at(k, self.shares.log_softmax(-1))

    def log_snr(self, t: Tensor) -> Tensor:
        """``lambda(t)``."""
        k, start = self._bin(t)
        inside = (t - start) / _at(k, self.masses.detach())
        return self.first - self.log_span.exp() * (k + inside) / len(self.shares)

    def log_snr_rate(self, t: Tensor) -> Tensor:
        """The derivative of :meth:`log_snr`."""
        k, _ = self._bin(t)
        return -self.log_span.exp() / (len(self.shares) * _at(k, self.masses.detach()))

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value."""
        count, masses = len(self.shares), self.masses.detach()
        r = count * (self.first - log_snr) / self.log_span.exp()
        k = r.detach().floor().long().clamp(0, count - 1)
        return _at(k, self._starts()) + (r - k) * _at(k, masses)

    def mean_scale(self, t: Tensor) -> Tensor:
        """``sqrt(sigmoid(lambda))``."""
        return self.log_snr(t).sigmoid().sqrt()

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """``alpha sigma^2 lambda' / 2``."""
        return 0.5 * self.mean_scale(t) * self.variance(t) * self.log_snr_rate(t)

    def variance(self, t: Tensor) -> Tensor:
        """``sigmoid(-lambda)``."""
        return (-self.log_snr(t)).sigmoid()

    def variance_rate(self, t: Tensor) -> Tensor:
        """``-alpha^2 sigma^2 lambda'``."""
        return -self.mean_scale(t).square() * self.variance(t) * self.log_snr_rate(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """``sigma sqrt(-lambda')``."""
        return (-self.log_snr_rate(t) * self.variance(t)).sqrt()

    def _starts(self) -> Tensor:
        masses = self.masses.detach()
        return masses.cumsum(-1) - masses

    def _bin(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The bin that ``t`` is in, and when it begins."""
        starts = self._starts()
        # A plain number is on no device of its own.
        k = (t.detach().to(starts.device).unsqueeze(-1) >= starts[1:]).sum(-1)
        return k, _at(k, starts)


def _at(k: Tensor, values: Tensor) -> Tensor:
    """``values[k]`` of the shape of ``k``, which may be captured with an index of no dimension."""
    return values.gather(0, k.reshape(-1)).reshape(k.shape)
