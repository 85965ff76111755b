"""Sticking the landing: a function whose parameters get no gradient, only its argument."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["stuck"]


def stuck(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)`` with its gradient in ``x`` alone.

    Args:
        function: ``[*batch, *event] -> [*batch]``, elementwise over the batch.
        x: what it is called with.

    References:
        G. Roeder, Y. Wu, D. Duvenaud, *Sticking the landing: simple, lower-variance gradient
        estimators for variational inference*, 2017, arXiv:1703.09194.
    """
    fixed = x.detach()
    if not x.requires_grad:
        with torch.no_grad():
            return function(fixed)

    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = function(x)
        return value.sum(), value

    with torch.no_grad():
        slope, value = torch.func.grad(total, has_aux=True)(fixed)
    path: Tensor = slope * (x - fixed)
    return value + path.flatten(value.dim()).sum(-1)  # type: ignore[no-any-return]
