r"""Bijections of the integers, for probability masses and lossless compression.

.. math:: y_a = x_a, \qquad y_b = x_b + \lfloor m(x_a) \rceil, \qquad x, y \in \mathbb{Z}^d .

No volume changes, so that :math:`P(y) = P_0(f^{-1}(y))` without a determinant. Rounding has no
useful derivative; in the backward pass it counts as the identity (straight-through).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from pyrogen.transforms._bijection import ValueAndLogDet
from pyrogen.transforms._coupling import Coupling

__all__ = ["IntegerCoupling"]


class IntegerCoupling(Coupling):
    r"""Shifts one part of an integer event by a rounded network of the other part.

    Values are integers in floating point, exact up to :math:`2^{24}` in float32. The gradient of
    the rounded shift is taken for that of the shift, which is biased but trains.

    Args:
        event_shape: of one event, ``D`` or ``[C, *rest]``; divided along its first dimension.
        network: :math:`m`, maps ``[*, kept + context_dim, *rest]`` to ``[*, changed, *rest]``.
            ``None`` makes an :class:`~pyrogen.nn.MLP` that returns zeros at first.
        split: how many elements come first; ``None`` means half of them.
        swap: change the elements that come first instead of those that come last.
        context_dim: size of the context, 0 for none.
        hidden: widths of the hidden layers, where ``network`` is ``None``.
        scale: the network sees values divided by this and its output is multiplied by it, so that
            a network made for numbers around 1 works on integers around ``scale``.

    Raises:
        ValueError: if the size to be divided is odd and ``split`` is not given, or ``scale`` is not
            positive; on call, with Pyro's validation on, if a value is not an integer.

    References:
        E. Hoogeboom, J. W. T. Peters, R. van den Berg, M. Welling, *Integer discrete flows and
        lossless compression*, 2019, arXiv:1905.07376.

    Example:
        >>> layer = IntegerCoupling(2, torch.nn.Linear(1, 1))
        >>> x = torch.tensor([[3.0, -7.0], [0.0, 5.0]])
        >>> y = layer(x)
        >>> torch.equal(y, y.round()), torch.equal(layer.inv(y), x)
        (True, True)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        network: Callable[[Tensor], Tensor] | None = None,
        split: int | None = None,
        swap: bool = False,
        context_dim: int = 0,
        hidden: Sequence[int] = (64, 64),
        scale: float = 1.0,
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale: expected a positive number, got {scale}")
        super().__init__(event_shape, network, split, swap, context_dim, hidden=hidden)
        self.scale = scale
        self.domain = self.codomain = constraints.independent(
            constraints.integer, len(self.event_shape)
        )

    def change(self, part: Tensor, parameters: Tensor, inverse: bool) -> ValueAndLogDet:
        """Adds the rounded shift, or takes it away."""
        shift: Tensor = _StraightThrough.apply(parameters)
        return part - shift if inverse else part + shift, torch.zeros_like(part)

    def _map(self, value: Tensor, context: Tensor | None, inverse: bool) -> ValueAndLogDet:
        if is_validation_enabled() and not (value == value.round()).all():
            raise ValueError(
                "IntegerCoupling: expected integers (in floating point), got other numbers; round "
                "them or use AdditiveCoupling"
            )
        return super()._map(value, context, inverse)

    def _predict(self, kept: Tensor, context: Tensor | None, changed: Tensor) -> Tensor:
        return super()._predict(kept / self.scale, context, changed) * self.scale


class _StraightThrough(torch.autograd.Function):
    """Rounds; its derivative is taken to be 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Rounds to the nearest integer."""
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Passes the gradient on."""
        return gradients[0]
