"""The parameters of a transform: learned numbers, or an affine function of a context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Amortized"]


class Amortized(nn.Module):
    r"""Several vectors :math:`\theta = \theta_0 + W c`, or :math:`\theta_0` without a context.

    Args:
        initial: the vectors :math:`\theta_0` to start from, each ``[size]``.
        context_dim: size of the context, 0 for none.
        scale: standard deviation of the effect of a context of unit length on each number.
    """

    def __init__(self, initial: Sequence[Tensor], context_dim: int = 0, scale: float = 0.1) -> None:
        super().__init__()
        self.sizes = [len(vector) for vector in initial]
        self.offset = nn.Parameter(torch.cat(list(initial)))
        self.weight = None
        if context_dim:
            self.weight = nn.Parameter(scale * torch.randn(sum(self.sizes), context_dim))

    def forward(self, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """Returns the vectors, each ``[*, size]``, for a context ``[*, context_dim]``."""
        parameters: Tensor = self.offset
        if self.weight is not None and context is not None:
            parameters = nn.functional.linear(context, self.weight, self.offset)
        return tuple(parameters.split(self.sizes, -1))
