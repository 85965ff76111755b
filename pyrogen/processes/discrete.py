r"""The variance-preserving process that passes through given levels of noise.

A denoising diffusion model of T steps mixes a share :math:`\beta_k` of noise in at step k,

.. math:: x_k \mid x_{k-1} \sim N\big(\sqrt{1 - \beta_k}\, x_{k-1},\, \beta_k\big), \qquad
   \bar\alpha_k = \prod_{j \le k} (1 - \beta_j) .

The process of continuous time has exactly these laws at the times :math:`k / T`. Between them, the
integral of its rate, :math:`B(k/T) = -\log \bar\alpha_k`, is a cubic for each step, and the rate
:math:`\beta(t) = B'(t)` is continuous and positive. So whatever is defined for a process applies to
the steps.

References:
    J. Ho, A. Jain, P. Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239.
    A. Nichol, P. Dhariwal, *Improved denoising diffusion probabilistic models*, 2021,
    arXiv:2102.09672. F. N. Fritsch, R. E. Carlson, *Monotone piecewise cubic interpolation*, 1980,
    doi:10.1137/0717021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrogen.processes.linear import LinearProcess

__all__ = ["DiscreteVariancePreserving"]

_NEWTON = 8  # iterations; the rate varies by less than a factor of 8 within a step


class DiscreteVariancePreserving(LinearProcess, nn.Module):
    r"""The variance-preserving process through the levels of noise of T steps.

    :meth:`linear` and :meth:`cosine` make the usual ones.

    Args:
        betas: :math:`\beta_1, \ldots, \beta_T`, ``[T]``.

    Attributes:
        num_timesteps: T.

    Raises:
        ValueError: unless they are one or more numbers between 0 and 1.

    Example:
        >>> process = DiscreteVariancePreserving.linear(1000).double()
        >>> print(f"{process.mean_scale(torch.tensor(1.0, dtype=torch.float64))**2:.6e}")
        4.035830e-05
        >>> steps = DiscreteVariancePreserving(torch.tensor([0.1, 0.5]))
        >>> steps.variance(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.1000, 0.5500])
    """

    betas: Tensor

    def __init__(self, betas: Tensor) -> None:
        nn.Module.__init__(self)
        given = torch.as_tensor(betas).detach()
        if given.dim() != 1 or not len(given) or not bool(((given > 0) & (given < 1)).all()):
            raise ValueError(
                "betas: expected one or more numbers between 0 and 1, one for each step, got "
                f"{betas}"
            )
        self.num_timesteps = len(given)
        self.register_buffer("betas", given.to(torch.get_default_dtype()), persistent=False)
        # Near times differ in their last digits: in double precision, whatever the module is in.
        self._cubics = _cubics(given.double())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves what is no buffer to the device of those that are."""
        super()._apply(fn, recurse)
        self._cubics = self._cubics.to(self.betas.device)
        return self

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, first: float | None = None, last: float | None = None
    ) -> DiscreteVariancePreserving:
        """Shares that grow linearly from step to step.

        Args:
            num_timesteps: T.
            first: that of step 1, by default 0.1 / T.
            last: that of step T, by default 20 / T, which is below 1 from T = 21 on.

        Raises:
            ValueError: if a share is not between 0 and 1.
        """
        _check_steps(num_timesteps)
        first = 0.1 / num_timesteps if first is None else first
        last = 20 / num_timesteps if last is None else last
        if not (0 < first < 1 and 0 < last < 1):
            raise ValueError(
                f"expected shares first and last between 0 and 1, got {first} and {last}; for few "
                "steps use cosine, or any process of continuous time"
            )
        return cls(torch.linspace(first, last, num_timesteps, dtype=torch.float64))

    @classmethod
    def cosine(
        cls, num_timesteps: int = 1000, offset: float = 0.008, largest: float = 0.999
    ) -> DiscreteVariancePreserving:
        r"""Shares by which :math:`\bar\alpha_k` falls like a squared cosine.

        Args:
            num_timesteps: T.
            offset: keeps the first shares from being tiny.
            largest: to which the last shares are cut.

        Raises:
            ValueError: if ``num_timesteps`` is not positive.
        """
        _check_steps(num_timesteps)
        steps = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        left = ((steps + offset) / (1 + offset) * (0.5 * math.pi)).cos().square()
        return cls((1 - left[1:] / left[:-1]).clamp(max=largest))

    def total(self, t: Tensor) -> Tensor:
        """``B(t)``, the integral of the rate."""
        return self._total(t).to(t.dtype)

    def rate(self, t: Tensor) -> Tensor:
        """``beta(t)``."""
        cubic, inside = self._cubic(t.double())
        return (self.num_timesteps * _slope(cubic, inside)).to(t.dtype)

    def mean_scale(self, t: Tensor) -> Tensor:
        """``exp(-B/2)``."""
        return (-0.5 * self.total(t)).exp()

    def mean_scale_rate(self, t: Tensor) -> Tensor:
        """``-beta alpha / 2``."""
        return -0.5 * self.rate(t) * self.mean_scale(t)

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
        total = softplus(-log_snr.double())
        cell = torch.searchsorted(self._cubics[0], total.contiguous(), right=True) - 1
        cell = cell.clamp(0, self.num_timesteps - 1)
        cubic = self._of(cell)
        inside = torch.full_like(total, 0.5)
        for _ in range(_NEWTON):
            inside = inside - (_value(cubic, inside) - total) / _slope(cubic, inside)
            inside = inside.clamp(0, 1)
        return ((cell + inside) / self.num_timesteps).to(log_snr.dtype)

    def _variance_between(self, start: Tensor, end: Tensor) -> Tensor:
        return -torch.expm1(self._total(start) - self._total(end)).to(end.dtype)

    def _total(self, t: Tensor) -> Tensor:
        return _value(*self._cubic(t.double()))

    def _cubic(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficients of the cubic at a time, and how far it is within the step."""
        place = t * self.num_timesteps
        cell = place.floor().clamp(0, self.num_timesteps - 1)
        return self._of(cell), place - cell

    def _of(self, cell: Tensor) -> Tensor:
        """The coefficients of the cubics of steps; no index, which would read a single one."""
        places = cell.long().reshape(-1).to(self._cubics.device)  # a number's are on the CPU
        chosen = self._cubics.index_select(1, places)
        return chosen.reshape(4, *cell.shape)


def _cubics(betas: Tensor) -> Tensor:
    """The coefficients of ``B`` within each step, ``[4, T]``."""
    steps = -torch.log1p(-betas)
    before, after = torch.cat([steps[:1], steps]), torch.cat([steps, steps[-1:]])
    # The mean of its neighbours is the rate at a step; at the ends, that of a parabola.
    rates = 0.5 * (before + after)
    ends = torch.stack([2 * steps[0] - rates[1], 2 * steps[-1] - rates[-2]])
    rates = torch.cat([ends[:1], rates[1:-1], ends[1:]])
    least = torch.minimum(before, after)
    rates = torch.minimum(torch.maximum(rates, 0.25 * least), 2 * least)  # keeps it positive
    first, last = rates[:-1], rates[1:]
    starts = torch.cat([steps.new_zeros(1), steps.cumsum(0)[:-1]])
    return torch.stack([starts, first, 3 * steps - 2 * first - last, first + last - 2 * steps])


def _value(cubic: Tensor, inside: Tensor) -> Tensor:
    a, b, c, d = cubic.unbind()
    return a + inside * (b + inside * (c + inside * d))


def _slope(cubic: Tensor, inside: Tensor) -> Tensor:
    _, b, c, d = cubic.unbind()
    return b + inside * (2 * c + inside * 3 * d)


def _check_steps(num_timesteps: int) -> None:
    if not isinstance(num_timesteps, int) or num_timesteps < 1:
        raise ValueError(f"num_timesteps: expected a positive integer, got {num_timesteps!r}")
