"""Levels to indicator vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyrogen.nn.shapes import as_shape

__all__ = ["OneHot"]


class OneHot(nn.Module):
    """Integer levels ``0..num_classes-1`` as indicator vectors in a new last dimension.

    Stands before a network that reads categorical data. The output has the dtype that the module
    was converted to, as the parameters of a network have.

    Args:
        num_classes: number of levels.

    Raises:
        ValueError: if ``num_classes`` is not positive; on call, if the input is not of integers.

    Example:
        >>> import torch
        >>> OneHot(3)(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    _zero: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        (self.num_classes,) = as_shape(num_classes, "num_classes")
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    def forward(self, levels: Tensor) -> Tensor:
        """Maps ``[*]`` to ``[*, num_classes]``."""
        if levels.is_floating_point() or levels.is_complex():
            raise ValueError(f"OneHot: expected integer levels, got {levels.dtype}; use .long()")
        classes = torch.arange(self.num_classes, device=levels.device)
        return (levels.unsqueeze(-1) == classes).to(self._zero.dtype)
