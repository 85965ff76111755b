"""Shape arguments and shape checks shared by the networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["as_shape", "batch_shape", "positive_ints"]


def positive_ints(values: Sequence[int], name: str) -> tuple[int, ...]:
    """Returns ``values`` as a tuple if all are positive integers.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(values, (str, int)) or not all(
        isinstance(value, int) and value > 0 for value in values
    ):
        raise ValueError(f"{name}: expected positive integers, got {values!r}")
    return tuple(values)


def as_shape(shape: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Returns a shape as a tuple; an integer ``n`` stands for ``(n,)``.

    Raises:
        ValueError: if a size is not a positive integer.
    """
    return positive_ints((shape,) if isinstance(shape, int) else shape, name)


def batch_shape(x: Tensor, in_shape: tuple[int, ...], network: str) -> torch.Size:
    """Returns the leading dimensions of ``x`` of shape ``[*, *in_shape]``.

    Raises:
        ValueError: if ``x`` does not end in ``in_shape`` or is not of floating point.
    """
    split = x.dim() - len(in_shape)
    if split < 0 or tuple(x.shape[split:]) != in_shape:
        expected = ", ".join(["*", *map(str, in_shape)])
        raise ValueError(f"{network}: expected input of shape [{expected}], got {list(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(
            f"{network}: expected input of floating point, got {x.dtype}; convert it with .to, or "
            "put pyrogen.nn.OneHot before the network if the values are levels"
        )
    return x.shape[:split]
