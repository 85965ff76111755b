"""What guides of paths have in common: a control that is zero at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from pyrogen.nn import TimeMLP

__all__ = ["still"]


def still(size: int, hidden: Sequence[int] = (64, 64), context_dim: int = 0) -> TimeMLP:
    """A field of zeros, whose last layer learns to move."""
    field = TimeMLP(size, hidden=hidden, context_dim=context_dim)
    last: Any = field.layers[-1]
    nn.init.zeros_(last.weight)
    return field
