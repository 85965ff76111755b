r"""A minibatch for each chain, whose noise is uncorrelated between chains.

A permutation per chain would cost as much as a pass over the data. Here all chains share one random
order :math:`\pi` of the :math:`N` data, drawn anew for each evaluation, and chain :math:`c` takes

.. math:: \pi(o_c + j\, s_c \bmod N), \qquad j = 0, \dots, n - 1,

with its own random place :math:`o_c` and its own random stride :math:`s_c`, which has no divisor in
common with :math:`N`. Each chain's minibatch is a set of :math:`n` data drawn uniformly without
replacement. Given :math:`\pi`, its place is uniform, so that the expectation of its noise is zero:
the noise of two chains is uncorrelated. The strides spread the windows over the pairs of data, so
that the variance of the noise over many chains hardly hangs on :math:`\pi`: by about
:math:`n / N`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Minibatch"]

_MOST_STRIDES = 1 << 16


@dataclass(frozen=True)
class Minibatch:
    """A plate that draws ``batch_size`` of ``size`` elements.

    Args:
        size: of the plate.
        batch_size: of the minibatch.
        device: of its indices.
    """

    size: int
    batch_size: int
    device: str | torch.device
    strides: Tensor = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        candidates = torch.arange(1, min(max(self.size, 2), _MOST_STRIDES), device=self.device)
        common = torch.gcd(candidates, torch.full_like(candidates, self.size))
        object.__setattr__(self, "strides", candidates[common == 1])

    def order(self) -> Tensor:
        """A random order of all elements ``[size]``, for all chains."""
        return torch.randperm(self.size, device=self.device)

    def indices(self, order: Tensor) -> Tensor:
        """The minibatch ``[batch_size]`` of one chain."""
        place = torch.randint(self.size, (), device=self.device)
        stride = self.strides[torch.randint(len(self.strides), (), device=self.device)]
        steps = torch.arange(self.batch_size, device=self.device)
        return order[(place + stride * steps) % self.size]
